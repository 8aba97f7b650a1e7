"""guidellm: the first command of its README with fewer and shorter texts, and rates; other text routes at one rate."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

URL = sys.argv[1]
with urllib.request.urlopen(f"{URL}/api/model") as answer:
    FOLDER = json.load(answer)["model_id"]
"""Its name on /v1 is no hub id, from which guidellm would take a tokenizer by itself."""
TOKENS = 12


def run(backend, requests, *options):
    """The benchmarks of a run, none of whose requests may have failed."""
    subprocess.run(
        ["guidellm", "run", "--backend", f"kind=openai_http,target={URL}{backend}", *options,
         "--constraint", f"kind=max_requests,count={requests}", "--disable-console-interactive",
         "--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={TOKENS}",
         "--tokenizer", f"kind=hf_auto,model={FOLDER}", "--output", "kind=json,path=said.json"],
        check=True,
    )  # fmt: skip
    found = json.loads(Path("said.json").read_bytes())["benchmarks"]
    for each in found:
        totals = each["metrics"]["request_totals"]
        assert (totals["errored"], totals["successful"]) == (0, totals["total"] - totals["incomplete"]), totals
        assert totals["successful"] > 0, totals
        for text in each["requests"]["successful"]:
            assert text["output"], text
            assert text["output_tokens"] == TOKENS, text
    return found


swept = run("", 4, "--profile", "kind=sweep,sweep_size=4")
strategies = [each["config"]["strategy"]["type_"] for each in swept]
for route in ("/v1/completions", "/v1/responses"):
    run(f",request_format={route}", 4, "--profile", "kind=concurrent,streams=2")
print(f"run --profile kind=sweep: {', '.join(strategies)}; by completions and by responses")
