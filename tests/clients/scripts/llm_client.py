"""llm: a prompt by an OpenAI-compatible model of `extra-openai-models.yaml`, whole and streamed."""

import os
import subprocess
import sys
from pathlib import Path

folder = Path("settings").resolve()
folder.mkdir()
environment = {**os.environ, "LLM_USER_PATH": str(folder)}
base = f"api_base: {sys.argv[1]}/v1\n"
(folder / "extra-openai-models.yaml").write_text(
    f"- model_id: sae\n  model_name: default\n  {base}"
    f"- model_id: sae-completion\n  model_name: default\n  {base}  completion: true\n"
)


def said(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("llm")), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


FEW = ("-o", "max_tokens", "64")  # a small model may go on for long
assert said("-m", "sae", *FEW, "Ten fun names for a pet pelican")
assert said("-m", "sae", "--no-stream", *FEW, "Ten fun names for a pet pelican")
assert said("-m", "sae-completion", "-o", "max_tokens", "16", "The names of my pelicans:")
assert said("models").count("sae") >= 2
print("chat completions (streamed, whole) and completions, from extra-openai-models.yaml")
