"""pydantic-ai: its first example, whole and streamed; a typed answer by JSON schema (its default mode is a tool)."""

import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

settings = {"max_tokens": 256}  # a small model may go on for long
provider = OpenAIProvider(base_url=f"{sys.argv[1]}/v1", api_key="none")
model = OpenAIChatModel("default", provider=provider, settings=settings)
agent = Agent(model, instructions="Be concise, reply with one sentence.")
result = agent.run_sync('Where does "hello world" come from?')
assert result.output, result
assert result.response.finish_reason in ("stop", "length"), result.response


async def streamed() -> str:
    async with agent.run_stream('Where does "hello world" come from?') as running:
        return await running.get_output()


assert asyncio.run(streamed())


class CityLocation(BaseModel):
    city: str
    country: str


typed = Agent(model, output_type=NativeOutput(CityLocation))
assert isinstance(typed.run_sync("Where were the olympics held in 2012?").output, CityLocation)

responses = Agent(
    OpenAIResponsesModel("default", provider=provider, settings=settings),
    instructions="Be concise, reply with one sentence.",
)
assert responses.run_sync('Where does "hello world" come from?').output
print("Agent by chat completions (whole, streamed) and by responses; a type by NativeOutput (its default calls a tool)")
