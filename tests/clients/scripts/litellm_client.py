"""LiteLLM: the example of its page on OpenAI-compatible endpoints, whole and streamed, chats and completions."""

import sys

import litellm

base = {"api_base": f"{sys.argv[1]}/v1", "api_key": "none", "max_tokens": 64}  # a small model may go on for long
messages = [{"role": "user", "content": "Hey, how's it going?"}]
response = litellm.completion(model="openai/default", messages=messages, **base)
assert response.choices[0].message.content, response
assert response.choices[0].finish_reason in ("stop", "length"), response
chunks = list(litellm.completion(model="openai/default", messages=messages, stream=True, **base))
assert "".join(each.choices[0].delta.content or "" for each in chunks), chunks
assert chunks[-1].choices[0].finish_reason in ("stop", "length"), chunks[-1]
text = litellm.text_completion(model="text-completion-openai/default", prompt="Say this is a test", **base)
assert text.choices[0].text, text
answer = litellm.responses(
    model="openai/default",
    input="Tell me a three sentence bedtime story.",
    max_output_tokens=64,
    api_base=base["api_base"],
    api_key="none",
)
assert answer.output[0].content[0].text, answer
print("completion (whole, streamed), text_completion, responses")
