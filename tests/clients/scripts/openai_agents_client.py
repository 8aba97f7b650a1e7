"""openai-agents: the first example of its README, by its responses model (the default) and the chat completions one."""

import asyncio
import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)


async def main() -> None:
    settings = ModelSettings(temperature=0, max_tokens=64)  # a small model may go on for long
    client = AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        model = kind(model="default", openai_client=client)
        agent = Agent(
            name="Assistant", instructions="You are a helpful assistant", model=model, model_settings=settings
        )
        result = await Runner.run(agent, "Write a haiku about recursion in programming.")
        assert result.final_output, result
        running = Runner.run_streamed(agent, "Write a haiku about recursion in programming.")
        kinds = [event.type async for event in running.stream_events()]
        assert "raw_response_event" in kinds, kinds
        assert running.final_output, running


asyncio.run(main())
print("Runner.run and run_streamed, by responses and by chat completions")
