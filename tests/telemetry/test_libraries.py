"""What libraries say: nothing of it on standard error, all of it once at `debug`. In processes, as users have them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SAYING = """
import logging, sys, types, warnings
import huggingface_hub, transformers
from sae_actor.telemetry import libraries, logs

{set_up}
libraries.adopt()
for _ in range(2):
    warnings.warn_explicit("old name", FutureWarning, transformers.__file__, 7, registry={{}})
    transformers.utils.logging.get_logger("transformers.models").warning("made up for you")
    huggingface_hub.logging.get_logger("huggingface_hub.file_download").warning("slow hub")
logging.getLogger("torch.anything").error("it broke")
logging.getLogger("sae_actor.engine").warning("ours")
warnings.warn_explicit("our own", ResourceWarning, libraries.__file__, 7, registry={{}})
"""
IN_PROCESS = "libraries.listen()"


def said(set_up: str) -> list[str]:
    command = [sys.executable, "-W", "default", "-c", SAYING.format(set_up=set_up)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr.splitlines()


@pytest.mark.parametrize("set_up", [IN_PROCESS, "logs.set_up('text', 'warning')", "logs.set_up('text', 'info')"])
def test_users_see_no_warning_of_a_library(set_up: str) -> None:
    assert said(set_up) == ["ERROR torch.anything: it broke", "WARNING sae_actor.engine: ours"]


def test_the_log_at_debug_has_each_once_with_its_library() -> None:
    assert said("logs.set_up('text', 'debug')") == [
        "DEBUG sae_actor.libraries.transformers: FutureWarning: old name",
        "DEBUG sae_actor.libraries.transformers: made up for you",
        "DEBUG sae_actor.libraries.huggingface_hub: slow hub",
        "ERROR torch.anything: it broke",
        "WARNING sae_actor.engine: ours",
        "DEBUG sae_actor.libraries.sae_actor: ResourceWarning: our own",
    ]
