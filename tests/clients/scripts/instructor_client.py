"""instructor: the first example of its README, in its JSON-schema mode (its first one calls a function)."""

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel


class User(BaseModel):
    name: str
    age: int


client = instructor.from_openai(OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none"), mode=instructor.Mode.JSON_SCHEMA)
user = client.create(
    model="default", response_model=User, messages=[{"role": "user", "content": "John is 25 years old"}], max_tokens=256
)
assert isinstance(user, User)
print("a User by JSON schema (its default mode calls a tool)")
