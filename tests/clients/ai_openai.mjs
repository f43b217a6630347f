// The Vercel AI SDK with @ai-sdk/openai, which speaks responses unless told otherwise.
import { createOpenAI } from "@ai-sdk/openai";
import { featuresOf } from "./ai_sdk.mjs";

export const FEATURES = featuresOf(({ url, model, headers }) =>
  createOpenAI({ baseURL: `${url}/v1`, apiKey: "none", headers })(model),
);
