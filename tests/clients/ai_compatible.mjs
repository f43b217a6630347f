// The Vercel AI SDK with @ai-sdk/openai-compatible, which speaks chat completions.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { featuresOf } from "./ai_sdk.mjs";

const settings = { name: "tidegate", apiKey: "none", includeUsage: true, supportsStructuredOutputs: true };

export const FEATURES = featuresOf(({ url, model, headers }) =>
  createOpenAICompatible({ ...settings, baseURL: `${url}/v1`, headers })(model),
);
