// The Vercel AI SDK with @ai-sdk/anthropic.
import { createAnthropic } from "@ai-sdk/anthropic";
import { featuresOf } from "./ai_sdk.mjs";

export const FEATURES = featuresOf(({ url, model, headers }) =>
  createAnthropic({ baseURL: `${url}/v1`, apiKey: "none", headers })(model),
);
