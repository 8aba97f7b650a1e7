"""Inspect: a task of one sample by its provider `openai-api`, and by `openai` with responses."""

import os
import sys

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, system_message

os.environ |= {"SAE_BASE_URL": f"{sys.argv[1]}/v1", "SAE_API_KEY": "none"}
os.environ |= {"OPENAI_BASE_URL": f"{sys.argv[1]}/v1", "OPENAI_API_KEY": "none"}
task = Task(
    dataset=[Sample(input="Just reply with Hello World", target="Hello World")],
    solver=[system_message("You are a helpful assistant."), generate()],
    scorer=includes(),
)
for model, arguments in (("openai-api/sae/default", {}), ("openai/default", {"responses_api": True})):
    (log,) = eval(task, model=model, model_args=arguments, display="none", log_dir="logs", max_tokens=64)
    assert log.status == "success", log.error
    output = log.samples[0].output
    assert output.completion, output
    assert output.stop_reason in ("stop", "max_tokens"), output
print("eval by openai-api (chat completions) and openai (responses)")
