// Does with one client what the tasks on standard input ask for, one after the other, and prints a report a line:
//   node run.mjs CLIENT < tasks.json
// A task is {feature, url, model, prompt, max_tokens, timeout_s, patience_s, headers}; a report is what reports.py says.
import { readFileSync } from "node:fs";

const { FEATURES } = await import(`./${process.argv[2]}.mjs`);

// A client that has no limit for what it waits for would wait here too.
const waits = ({ patience_s }) =>
  new Promise((resolve) => setTimeout(() => resolve({ waits: true }), patience_s * 1000));

for (const task of JSON.parse(readFileSync(0, "utf8"))) {
  let report;
  try {
    report = await Promise.race([FEATURES[task.feature](task), waits(task)]);
  } catch (error) {
    report = { error: told(error) };
  }
  console.log(JSON.stringify(report));
}
process.exit(0); // a stream that nobody reads any more must not keep the process

function told(error) {
  const cause = error.lastError ?? error; // the AI SDK wraps what its last attempt raised
  return {
    type: error.name === "Error" ? error.constructor.name : error.name,
    cause: cause === error ? null : cause.name,
    status: cause.status ?? cause.statusCode ?? null,
    message: String(error.message),
  };
}
