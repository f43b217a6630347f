// What all JavaScript clients are asked for; the same as in reports.py.
import { z } from "zod";

export const WEATHER = "What is the weather in Paris?";
export const CITY = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};
export const City = z.object({ city: z.string().max(20) }).strict();
export const Colour = z.object({ name: z.enum(["red", "green"]), level: z.number().int() }).strict();

export const said = (text) => [{ role: "user", content: text }];
