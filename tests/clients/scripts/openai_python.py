"""openai for Python: the examples of its README (responses, chat completions, streamed ones) and a completion."""

import sys

from openai import OpenAI

FEW = 64  # a small model may go on for long
client = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")

response = client.responses.create(
    model="default",
    instructions="You are a coding assistant that talks like a pirate.",
    input="How do I check if a Python object is an instance of a class?",
    max_output_tokens=FEW,
)
assert response.output_text, response
assert response.status in ("completed", "incomplete"), response

completion = client.chat.completions.create(
    model="default",
    messages=[
        {"role": "developer", "content": "Talk like a pirate."},
        {"role": "user", "content": "How do I check if a Python object is an instance of a class?"},
    ],
    max_tokens=FEW,
)
assert completion.choices[0].message.content, completion
assert completion.choices[0].finish_reason in ("stop", "length"), completion

events = list(
    client.responses.create(
        model="default", input="Write a one-sentence bedtime story about a unicorn.", stream=True, max_output_tokens=FEW
    )
)
assert "".join(each.delta for each in events if each.type == "response.output_text.delta"), events
assert events[-1].type in ("response.completed", "response.incomplete"), events[-1]

chunks = list(
    client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "Say this is a test"}], stream=True, max_tokens=FEW
    )
)
assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices), chunks
assert [each.choices[0].finish_reason for each in chunks if each.choices][-1] in ("stop", "length"), chunks[-1]

text = client.completions.create(model="default", prompt="Say this is a test", max_tokens=7, temperature=0)
assert text.choices[0].text, text
assert text.choices[0].finish_reason in ("stop", "length"), text
parts = list(client.completions.create(model="default", prompt="Say this is a test", max_tokens=7, stream=True))
assert "".join(each.choices[0].text for each in parts), parts
assert parts[-1].choices[0].finish_reason in ("stop", "length"), parts[-1]

print("responses, chat completions, completions, each whole and streamed")
