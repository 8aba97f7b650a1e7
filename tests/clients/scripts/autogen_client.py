"""AutoGen: the first example of its README (AssistantAgent) and of its page on model clients, streamed too."""

import asyncio
import sys

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import ModelFamily, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient


async def main() -> None:
    client = OpenAIChatCompletionClient(
        model="default",
        base_url=f"{sys.argv[1]}/v1",
        api_key="none",
        max_tokens=64,  # a small model may go on for long
        model_info={
            "vision": False,
            "function_calling": False,
            "json_output": True,
            "structured_output": True,
            "family": ModelFamily.UNKNOWN,
        },
    )
    agent = AssistantAgent("assistant", model_client=client)
    result = await agent.run(task="Say 'Hello World!'")
    assert result.messages[-1].content, result
    message = UserMessage(content="What is the capital of France?", source="user")
    answer = await client.create([message])
    assert answer.content, answer
    assert answer.finish_reason in ("stop", "length"), answer
    parts = [each async for each in client.create_stream([message])]
    assert "".join(each for each in parts if isinstance(each, str)), parts
    assert parts[-1].finish_reason in ("stop", "length"), parts[-1]
    await client.close()


asyncio.run(main())
print("AssistantAgent.run; create and create_stream of the model client")
