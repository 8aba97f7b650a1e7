"""`vllm bench serve`: the parser and the function behind that command, on random prompts, by both text routes.

Of vLLM nothing but what these import is installed, so that the command's own entry, which imports every other command
too, is not there.
"""

import json
import sys
import urllib.request

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

URL = sys.argv[1]
with urllib.request.urlopen(f"{URL}/api/model") as answer:
    FOLDER = json.load(answer)["model_id"]
"""The model's name on /v1, from which vLLM would take a tokenizer by itself, is no hub id."""
REQUESTS, TOKENS = 8, 12
FEW = ["--num-prompts", str(REQUESTS), "--random-input-len", "64", "--random-output-len", str(TOKENS)]
said = []
for options in (
    [],
    ["--ignore-eos", "--temperature", "0", "--logprobs", "2"],
    ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--ignore-eos"],
):
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    found = main(parser.parse_args(["--base-url", URL, "--tokenizer", FOLDER, *FEW, *options]))
    assert (found["completed"], found["failed"]) == (REQUESTS, 0), found
    assert found["total_input_tokens"] >= 64 * REQUESTS, found
    assert 0 < found["total_output_tokens"] <= REQUESTS * TOKENS, found
    if "--ignore-eos" in options:
        assert found["total_output_tokens"] == REQUESTS * TOKENS, found
    assert found["mean_ttft_ms"] > 0, found
    assert found["mean_tpot_ms"] > 0, found
    said.append(f"{found['output_throughput']:.0f}")
print(
    f"{REQUESTS} texts each by completions, with --ignore-eos and --logprobs, by openai-chat: {', '.join(said)} tok/s"
)
