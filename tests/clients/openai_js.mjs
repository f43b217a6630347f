// The OpenAI SDK for JavaScript, over chat completions.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { CITY, Colour, said, WEATHER } from "./shared.mjs";

const TOOL = { type: "function", function: { name: "weather", description: "Tells the weather", parameters: CITY } };
const FORCED = { type: "function", function: { name: "weather" } };

export const client = ({ url, timeout_s, headers }) =>
  new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", timeout: timeout_s * 1000, defaultHeaders: headers });

const asked = (task) => ({
  model: task.model,
  messages: said(task.prompt),
  max_tokens: task.max_tokens,
  temperature: 0,
});

async function whole(task) {
  const answer = await client(task).chat.completions.create(asked(task));
  const [{ message, finish_reason }] = answer.choices;
  return { text: message.content, finish: finish_reason, prompt_tokens: answer.usage.prompt_tokens };
}

async function stream(task) {
  const report = { text: "", finish: null };
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client(task).chat.completions.create({ ...asked(task), ...options })) {
    report.prompt_tokens = chunk.usage?.prompt_tokens ?? report.prompt_tokens;
    for (const { delta, finish_reason } of chunk.choices) {
      report.text += delta.content ?? "";
      report.finish = finish_reason ?? report.finish;
    }
  }
  return report;
}

const toolQuestion = (task) => ({
  ...asked({ ...task, prompt: WEATHER, max_tokens: 64 }),
  tools: [TOOL],
  tool_choice: FORCED,
});

function called({ choices: [{ message }] }) {
  const [call] = message.tool_calls;
  return { tool: { id: call.id, name: call.function.name, arguments: JSON.parse(call.function.arguments) } };
}

async function tools(task) {
  return called(await client(task).chat.completions.create(toolQuestion(task)));
}

async function toolsStreamed(task) {
  return called(await client(task).chat.completions.stream(toolQuestion(task)).finalChatCompletion());
}

async function toolResults(task) {
  const call = { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city": "Paris"}' } };
  const messages = [
    ...said(WEATHER),
    { role: "assistant", content: null, tool_calls: [call] },
    { role: "tool", tool_call_id: "call_1", content: "sunny" },
  ];
  const answer = await client(task).chat.completions.create({ ...asked(task), messages, tools: [TOOL] });
  return { text: answer.choices[0].message.content, finish: answer.choices[0].finish_reason };
}

async function schema(task) {
  const format = { response_format: zodResponseFormat(Colour, "colour"), max_tokens: 48 };
  const answer = await client(task).chat.completions.parse({ ...asked(task), ...format });
  return { parsed: answer.choices[0].message.parsed };
}

async function cancel(task) {
  const chunks = await client(task).chat.completions.create({ ...asked(task), stream: true, max_tokens: 4096 });
  for await (const chunk of chunks) {
    const text = chunk.choices[0]?.delta.content;
    if (text) {
      chunks.controller.abort();
      return { text };
    }
  }
}

async function models(task) {
  const names = [];
  for await (const model of client(task).models.list()) names.push(model.id);
  return { names };
}

export const FEATURES = {
  whole,
  stream,
  tools,
  "tools streamed": toolsStreamed,
  "tool results": toolResults,
  schema,
  cancel,
  models,
};
