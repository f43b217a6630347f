// The Vercel AI SDK; which of its providers speaks is the caller's to say.
import { generateText, jsonSchema, Output, streamText, tool } from "ai";
import { CITY, Colour, WEATHER } from "./shared.mjs";

const weather = tool({ description: "Tells the weather", inputSchema: jsonSchema(CITY) });

export function featuresOf(model) {
  const asked = (task) => ({
    model: model(task),
    prompt: task.prompt,
    maxOutputTokens: task.max_tokens,
    temperature: 0,
    abortSignal: AbortSignal.timeout(task.timeout_s * 1000),
  });
  const toolQuestion = (task) => ({
    ...asked({ ...task, prompt: WEATHER, max_tokens: 64 }),
    tools: { weather },
    toolChoice: { type: "tool", toolName: "weather" },
  });

  async function whole(task) {
    const { text, finishReason, usage } = await generateText(asked(task));
    return { text, finish: finishReason, prompt_tokens: usage.inputTokens };
  }

  async function stream(task) {
    let text = "";
    const answer = streamed(asked(task));
    for await (const piece of parts(answer)) text += piece;
    return { text, finish: await answer.finishReason, prompt_tokens: (await answer.usage).inputTokens };
  }

  async function tools(task) {
    return called((await generateText(toolQuestion(task))).toolCalls);
  }

  async function toolsStreamed(task) {
    const answer = streamed(toolQuestion(task));
    for await (const _ of parts(answer));
    return called(await answer.toolCalls);
  }

  async function toolResults(task) {
    const call = { type: "tool-call", toolCallId: "call_1", toolName: "weather", input: { city: "Paris" } };
    const output = { type: "text", value: "sunny" };
    const result = { type: "tool-result", toolCallId: "call_1", toolName: "weather", output };
    const { prompt: _, ...rest } = asked(task);
    const messages = [
      { role: "user", content: WEATHER },
      { role: "assistant", content: [call] },
      { role: "tool", content: [result] },
    ];
    const { text, finishReason } = await generateText({ ...rest, messages, tools: { weather } });
    return { text, finish: finishReason };
  }

  async function schema(task) {
    const output = Output.object({ schema: Colour, name: "colour" });
    return { parsed: (await generateText({ ...asked(task), output, maxOutputTokens: 48 })).output };
  }

  async function cancel(task) {
    const leaving = new AbortController();
    const answer = streamed({ ...asked(task), maxOutputTokens: 4096, abortSignal: leaving.signal });
    for await (const text of parts(answer)) {
      leaving.abort();
      return { text };
    }
  }

  return {
    whole,
    stream,
    tools,
    "tools streamed": toolsStreamed,
    "tool results": toolResults,
    schema,
    cancel,
  };
}

// The SDK hands errors of a stream to onError and as parts, and ends the stream of texts as if nothing had happened.
async function* parts(answer) {
  for await (const part of answer.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "abort") throw new DOMException("the stream was aborted", "AbortError");
    if (part.type === "text-delta") yield part.text;
  }
}

const streamed = (question) => streamText({ ...question, onError: () => {} });

function called([call]) {
  return { tool: { id: call.toolCallId, name: call.toolName, arguments: call.input } };
}
