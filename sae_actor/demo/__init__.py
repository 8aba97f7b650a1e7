"""The demo: a small real model, a real SAE that ships in the package, and three lines that show steering."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

SAE_FOLDER = Path(__file__).with_name("smollm2-135m-layer15")
"""The bundled SAE, in SAELens layout; its README describes its training and readable features."""

QUESTION = "Tell me about your day."
FEATURE = 584
"""God / self / nature."""
STRENGTH = 85
MAX_TOKENS = 40

TITLES = (
    "The model's own answer to a question:",
    f"Steer: feature {FEATURE} (God / self / nature), {STRENGTH} times its direction added:",
    "The same question again:",
)
"""What each of the three lines shows."""

_TEXT = (
    'import json,sys; a = json.load(sys.stdin); print(a["choices"][0]["message"]["content"] if "choices" in a else a)'
)


def curl_lines(url: str, sae_id: str, *, token: bool = False) -> list[str]:
    """Three lines for a shell: the bare answer, feature 584 steered to 85, the answer again.

    The answers are greedy, so they are the same each time. The first sets `baseline`, so it is bare whatever is steered
    already. `token`: the service requires one, which the lines take from SAE_ACTOR_TOKEN.
    """
    question = {
        "model": "default",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    edit = {"feature": FEATURE, "strength": STRENGTH, "method": "add"}
    curl = _curl(token=token)
    chat = f"{curl} {url}/v1/chat/completions -d"
    text = f"| python3 -c {shlex.quote(_TEXT)}"
    steering = f"{curl} -w '\\n' -X PUT {url}/api/saes/{sae_id}/steering -d"
    return [
        f"{chat} {_quoted({**question, 'sae': {'baseline': True}})} {text}",
        f"{steering} {_quoted({'features': [edit]})}",
        f"{chat} {_quoted(question)} {text}",
    ]


def way_back(url: str, sae_id: str, path: Path, *, known: bool, token: bool = False) -> list[str]:
    """Lines for a shell that attach the demo's SAE; if its record is gone, its folder is registered again first."""
    command = f"{_curl(token=token)} -H 'Prefer: wait=60' -w '\\n' {url}/api/commands -d"
    steps: list[dict[str, object]] = [{"type": "Attach", "sae_id": sae_id}]
    if not known:
        steps.insert(0, {"type": "Import", "path": str(path)})
    return [f"{command} {_quoted(step)}" for step in steps]


def _curl(*, token: bool) -> str:
    curl = "curl -sS -H 'Content-Type: application/json'"
    return f'{curl} -H "Authorization: Bearer $SAE_ACTOR_TOKEN"' if token else curl


def _quoted(body: dict[str, object]) -> str:
    return shlex.quote(json.dumps(body))
