// The OpenAI SDK for JavaScript, over responses.
import { zodTextFormat } from "openai/helpers/zod";
import { client } from "./openai_js.mjs";
import { CITY, Colour, WEATHER } from "./shared.mjs";

const TOOL = { type: "function", name: "weather", description: "Tells the weather", parameters: CITY, strict: true };
const FORCED = { type: "function", name: "weather" };

const asked = (task) => ({
  model: task.model,
  input: task.prompt,
  max_output_tokens: task.max_tokens,
  temperature: 0,
});

async function whole(task) {
  const answer = await client(task).responses.create(asked(task));
  return { text: answer.output_text, finish: answer.status, prompt_tokens: answer.usage.input_tokens };
}

async function stream(task) {
  const report = { text: "", finish: null };
  for await (const event of await client(task).responses.create({ ...asked(task), stream: true })) {
    if (event.type === "response.output_text.delta") report.text += event.delta;
    if (event.type === "response.completed" || event.type === "response.incomplete") {
      report.finish = event.response.status;
      report.prompt_tokens = event.response.usage.input_tokens;
    }
  }
  return report;
}

const toolQuestion = (task) => ({
  ...asked({ ...task, prompt: WEATHER, max_tokens: 64 }),
  tools: [TOOL],
  tool_choice: FORCED,
});

function called(response) {
  const [item] = response.output.filter(({ type }) => type === "function_call");
  return { tool: { id: item.call_id, name: item.name, arguments: JSON.parse(item.arguments) } };
}

async function tools(task) {
  return called(await client(task).responses.create(toolQuestion(task)));
}

async function toolsStreamed(task) {
  return called(await client(task).responses.stream(toolQuestion(task)).finalResponse());
}

async function toolResults(task) {
  const first = await client(task).responses.create(toolQuestion(task));
  const input = [{ type: "function_call_output", call_id: called(first).tool.id, output: "sunny" }];
  const answer = await client(task).responses.create({ ...asked(task), input, previous_response_id: first.id });
  return { text: answer.output_text, finish: answer.status };
}

async function schema(task) {
  const format = { text: { format: zodTextFormat(Colour, "colour") }, max_output_tokens: 48 };
  return { parsed: (await client(task).responses.parse({ ...asked(task), ...format })).output_parsed };
}

async function cancel(task) {
  const question = { ...asked(task), stream: true, max_output_tokens: 4096 };
  const events = await client(task).responses.create(question);
  for await (const event of events) {
    if (event.type === "response.output_text.delta") {
      events.controller.abort();
      return { text: event.delta };
    }
  }
}

export const FEATURES = {
  whole,
  stream,
  tools,
  "tools streamed": toolsStreamed,
  "tool results": toolResults,
  schema,
  cancel,
};
