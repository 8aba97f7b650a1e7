"""LlamaIndex (openai-like): the first examples of its page, chats and completions, whole and streamed."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

base = {
    "model": "default",
    "api_base": f"{sys.argv[1]}/v1",
    "api_key": "none",
    "max_tokens": 64,
}  # a small model may go on for long
chat = OpenAILike(**base, is_chat_model=True)
messages = [
    ChatMessage(role="system", content="You are a pirate with a colorful personality"),
    ChatMessage(role="user", content="What is your name"),
]
answer = chat.chat(messages)
assert answer.message.content, answer
assert answer.raw.choices[0].finish_reason in ("stop", "length"), answer.raw
assert "".join(each.delta for each in chat.stream_chat(messages))
assert chat.complete("Paul Graham is ").text
plain = OpenAILike(**base, is_chat_model=False)
assert plain.complete("Paul Graham is ").text
assert "".join(each.delta for each in plain.stream_complete("Paul Graham is "))
print("OpenAILike: chat and complete, whole and streamed, by chat completions and by completions")
