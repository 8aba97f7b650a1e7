"""The frames of what passes: progress, as it has always been on the wire."""

from __future__ import annotations

import msgspec
import pytest

from sae_actor.ports import Progress
from sae_actor.subscriptions import progress_frame


@pytest.mark.parametrize(
    ("progress", "name", "data"),
    [
        (
            Progress(kind="download", subject="a", phase="body", done=5, total=9, rate=2.5, seconds_left=1.6, file="w"),
            "download_progress",
            b'{"sae_id":"a","phase":"body","bytes":5,"total":9,"rate":2.5,"seconds_left":1.6,"file":"w"}',
        ),
        (
            Progress(kind="download", subject="a", phase="waiting", reason="other_downloads"),
            "download_progress",
            b'{"sae_id":"a","phase":"waiting","bytes":0,"total":0,"rate":0.0,"seconds_left":null,"file":null,'
            b'"reason":"other_downloads"}',
        ),
        (
            Progress(kind="fetch", subject="org/m", phase="resolving"),
            "model_progress",
            b'{"model":"org/m","stage":"fetching","phase":"resolving","bytes":0,"total_bytes":null,"rate":0.0,'
            b'"seconds_left":null,"file":null}',
        ),
        (
            Progress(kind="fetch", subject="org/m", phase="waiting", done=5, total=9, seconds_left=3.0, reason="x"),
            "model_progress",
            b'{"model":"org/m","stage":"fetching","phase":"waiting","bytes":5,"total_bytes":9,"rate":0.0,'
            b'"seconds_left":3.0,"file":null,"reason":"x"}',
        ),
        (
            Progress(kind="load", subject="org/m", phase="checking"),
            "model_progress",
            b'{"model":"org/m","stage":"checking"}',
        ),
    ],
)
def test_the_frame_of_progress(progress: Progress, name: str, data: bytes) -> None:
    told, shown = progress_frame(progress)
    assert (told, msgspec.json.encode(shown)) == (name, data)
