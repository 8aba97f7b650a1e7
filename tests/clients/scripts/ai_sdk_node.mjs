// The AI SDK with @ai-sdk/openai: its first example, by responses (the default), chat completions and completions.

import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, streamText } from "ai";

const openai = createOpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none" });
const few = { maxOutputTokens: 64 };  // a small model may go on for long
const ends = ["stop", "length"];
for (const model of [openai("default"), openai.chat("default")]) {
  const whole = await generateText({ model, prompt: "What is love?", ...few });
  assert.ok(whole.text);
  assert.ok(ends.includes(whole.finishReason), whole.finishReason);
  const streamed = streamText({ model, prompt: "What is love?", ...few });
  let text = "";
  for await (const part of streamed.textStream) text += part;
  assert.ok(text);
  assert.ok(ends.includes(await streamed.finishReason), await streamed.finishReason);
}
const plain = await generateText({ model: openai.completion("default"), prompt: "What is love?", ...few });
assert.ok(plain.text);
assert.ok(ends.includes(plain.finishReason), plain.finishReason);
console.log("generateText and streamText by responses and by chat completions; generateText by completions");
