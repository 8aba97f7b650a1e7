// openai for JavaScript, in node: the examples of its README and a completion.

import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none" });
const model = "default";
const max_tokens = 64;  // a small model may go on for long
const ends = ["stop", "length"];

const response = await client.responses.create({
  model,
  instructions: "You are a coding assistant that talks like a pirate",
  max_output_tokens: max_tokens,
  input: "Are semicolons optional in JavaScript?",
});
assert.ok(response.output_text);
assert.ok(["completed", "incomplete"].includes(response.status));

const completion = await client.chat.completions.create({
  model,
  max_tokens,
  messages: [
    { role: "developer", content: "Talk like a pirate." },
    { role: "user", content: "Are semicolons optional in JavaScript?" },
  ],
});
assert.ok(completion.choices[0].message.content);
assert.ok(ends.includes(completion.choices[0].finish_reason));

let [text, last] = ["", ""];
for await (const event of await client.responses.create({
  model, input: 'Say "Sheep sleep deep" ten times fast!', max_output_tokens: max_tokens, stream: true,
})) {
  text += event.type === "response.output_text.delta" ? event.delta : "";
  last = event.type;
}
assert.ok(text);
assert.ok(["response.completed", "response.incomplete"].includes(last), last);

[text, last] = ["", ""];
const messages = [{ role: "user", content: "Say this is a test" }];
for await (const { choices } of await client.chat.completions.create({ model, messages, max_tokens, stream: true })) {
  text += choices[0]?.delta?.content ?? "";
  last = choices[0]?.finish_reason ?? last;
}
assert.ok(text);
assert.ok(ends.includes(last), last);

const plain = await client.completions.create({ model, prompt: "Say this is a test", max_tokens: 7, temperature: 0 });
assert.ok(plain.choices[0].text);
assert.ok(ends.includes(plain.choices[0].finish_reason));

console.log("responses and chat completions, each whole and streamed; completions");
