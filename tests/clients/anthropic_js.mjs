// The Anthropic SDK for JavaScript.
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { CITY, Colour, said, WEATHER } from "./shared.mjs";

const TOOL = { name: "weather", description: "Tells the weather", input_schema: CITY };
const FORCED = { type: "tool", name: "weather" };

const client = ({ url, timeout_s, headers }) =>
  new Anthropic({ baseURL: url, apiKey: "none", timeout: timeout_s * 1000, defaultHeaders: headers });

const asked = (task) => ({
  model: task.model,
  messages: said(task.prompt),
  max_tokens: task.max_tokens,
  temperature: 0,
});

function told({ content, stop_reason, usage }) {
  const text = content.map((block) => block.text ?? "").join("");
  const prompt_tokens = usage.input_tokens + (usage.cache_read_input_tokens ?? 0);
  return { text, finish: stop_reason, prompt_tokens };
}

async function whole(task) {
  return told(await client(task).messages.create(asked(task)));
}

async function stream(task) {
  return told(await client(task).messages.stream(asked(task)).finalMessage());
}

const toolQuestion = (task) => ({
  ...asked({ ...task, prompt: WEATHER, max_tokens: 64 }),
  tools: [TOOL],
  tool_choice: FORCED,
});

function called({ content }) {
  const [block] = content.filter(({ type }) => type === "tool_use");
  return { tool: { id: block.id, name: block.name, arguments: block.input } };
}

async function tools(task) {
  return called(await client(task).messages.create(toolQuestion(task)));
}

async function toolsStreamed(task) {
  return called(await client(task).messages.stream(toolQuestion(task)).finalMessage());
}

async function toolResults(task) {
  const use = { type: "tool_use", id: "toolu_1", name: "weather", input: { city: "Paris" } };
  const result = { type: "tool_result", tool_use_id: "toolu_1", content: "sunny" };
  const messages = [
    ...said(WEATHER),
    { role: "assistant", content: [use] },
    { role: "user", content: [result] },
  ];
  return told(await client(task).messages.create({ ...asked(task), messages, tools: [TOOL] }));
}

async function schema(task) {
  const format = { output_config: { format: zodOutputFormat(Colour) }, max_tokens: 48 };
  return { parsed: (await client(task).messages.parse({ ...asked(task), ...format })).parsed_output };
}

async function cancel(task) {
  const events = await client(task).messages.create({ ...asked(task), stream: true, max_tokens: 4096 });
  for await (const event of events) {
    if (event.type === "content_block_delta") {
      events.controller.abort();
      return { text: event.delta.text };
    }
  }
}

async function models(task) {
  const names = [];
  for await (const model of client(task).models.list()) names.push(model.id);
  return { names };
}

async function count(task) {
  const counted = await client(task).messages.countTokens({ model: task.model, messages: said(task.prompt) });
  return { prompt_tokens: counted.input_tokens };
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
  count,
};
