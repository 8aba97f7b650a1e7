"""DSPy: the first example of its page; then a module, whose answer a JSON schema holds: a small model by itself misses
the headings that an adapter asks for. DSPy sends schemas to a provider of which it is told that it takes them."""

import sys

import dspy
from dspy.adapters import JSONAdapter
from dspy.lm15 import AccessPolicy, Message, ModelSupport, OpenAIChatCompat, ProviderDefinition, Request
from dspy.lm15 import register_provider as register

URL = f"{sys.argv[1]}/v1"
PROMPT = "Say this is a test!"

lm = dspy.LM("openai/default", api_base=URL, api_key="none", max_tokens=32, cache=False)
dspy.configure(lm=lm)
(text,) = lm(PROMPT)
assert text

server = ProviderDefinition.chat(AccessPolicy(provider="sae-actor", base_url=URL), compat=OpenAIChatCompat())
register(server, supports=ModelSupport(response_schema=True))
lm = dspy.LM("sae-actor/default", api_key="none", max_tokens=64, cache=False)
assert lm(Request(model="sae-actor/default", messages=(Message.user(PROMPT),))).text

dspy.configure(lm=lm, adapter=JSONAdapter())
answer = dspy.Predict("sentence -> sentiment: bool")(sentence="it's a charming and often affecting journey.")
assert isinstance(answer.sentiment, bool)
assert lm.history[-1]["response"].finish_reason == "stop"
print(f"lm by prompt and by request; Predict with JSONAdapter and a JSON schema: sentiment={answer.sentiment}")
