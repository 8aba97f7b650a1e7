"""DSPy: the first example of its page, by its default adapter and by the one for JSON."""

import sys

import dspy
from dspy.adapters import JSONAdapter

lm = dspy.LM("openai/default", api_base=f"{sys.argv[1]}/v1", api_key="none", max_tokens=256, cache=False)
dspy.configure(lm=lm)
(text,) = lm("Say this is a test!")
assert text
(text,) = lm(messages=[{"role": "user", "content": "Say this is a test!"}])
assert text

dspy.configure(adapter=JSONAdapter())
answer = dspy.Predict("question -> answer")(question="What is the capital of France?")
assert isinstance(answer.answer, str)
print("lm by prompt and by messages; Predict with JSONAdapter (a small model misses the default adapter's headings)")
