"""langchain-openai: the first example of ChatOpenAI's page, whole and streamed, and that of OpenAI (completions)."""

import sys

from langchain_openai import ChatOpenAI, OpenAI

base = {
    "base_url": f"{sys.argv[1]}/v1",
    "api_key": "none",
    "model": "default",
    "max_tokens": 64,
}  # a small model may go on for long
llm = ChatOpenAI(**base)
messages = [
    ("system", "You are a helpful assistant that translates English to French. Translate the user sentence."),
    ("human", "I love programming."),
]
message = llm.invoke(messages)
assert message.content, message
assert message.response_metadata["finish_reason"] in ("stop", "length"), message
assert message.usage_metadata["output_tokens"] > 0, message
chunks = list(llm.stream(messages))
assert "".join(each.content for each in chunks), chunks
ends = [each.response_metadata["finish_reason"] for each in chunks if "finish_reason" in each.response_metadata]
assert ends[0] in ("stop", "length"), ends

answer = ChatOpenAI(**base, use_responses_api=True).invoke(messages)
assert answer.text, answer
assert OpenAI(**base).invoke("Hello how are you?")
print("ChatOpenAI by chat completions (whole, streamed) and by responses; OpenAI by completions")
