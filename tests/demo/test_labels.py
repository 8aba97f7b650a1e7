"""The demo's SAE comes with six labels and its statistics, found without any import."""

from __future__ import annotations

from pathlib import Path

from sae_actor.domain.state import SaeRecord
from sae_actor.features import FeatureDirectory
from sae_actor.features.own import own_entries
from sae_actor.formats import describe

LABELS = {
    17: "liking and disliking: love, favorite, hate",
    74: "books, reading, publishing",
    351: "magic and secrets, keys",
    584: "self, God, religion",
    2188: "forms of to be: is, are, was",
    2220: "digits of numbers",
}


def test_six_labels_and_all_statistics(demo_sae: Path, tmp_path: Path) -> None:
    record = SaeRecord(
        sae_id="demo", source="import", repository_id=None, revision=None, path=str(demo_sae), status="cached",
        request_position=1, created_at="", sae=describe(demo_sae),
    )  # fmt: skip
    directory = FeatureDirectory(tmp_path)
    directory.replace("demo", "@folder", "", 0, own_entries(record, demo_sae))
    assert directory.labels("demo") == LABELS
    assert directory.search("demo").total == 2304
    (row,) = directory.search("demo", "religion").features
    assert (row.feature, row.label, row.max, row.top_tokens[:2]) == (584, LABELS[584], 40.14, (" self", " God"))
    directory.close()
