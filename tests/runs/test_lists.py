"""Lists of texts, as they lie in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_actor.errors import BadRequestError
from sae_actor.runs.lists import read_file


@pytest.mark.parametrize("kind", ["txt", "ndjson"])
def test_a_file_that_cannot_be_read_is_the_request_s_fault_and_no_full_disk(kind: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match="cannot be read"):
        list(read_file(Path("/proc/self/mem"), kind))
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadRequestError, match="the file of texts cannot be read: Is a directory"):
        list(read_file(tmp_path / "folder", "txt"))
