"""An SAE that is not attached: its strengths in other units, from its files."""

from __future__ import annotations

from ...domain.refs import Edit
from ...domain.state import SaeLocation
from ...sae import load_sae
from ...sae.units import resolve_units
from .statistics import Statistics, read_statistics


def resolved_at_rest(location: SaeLocation, folder: str, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """The edits with raw strengths, at the hook point where the SAE was trained. Blocks: for a worker thread.

    The SAE is gone again afterwards. Raises what `load_sae` and `resolve_units` raise.
    """
    statistics = Statistics()
    if any(edit.unit in ("max", "norm") for edit in edits):
        statistics = read_statistics(folder)
    sae = load_sae(
        folder,
        dtype="float32",
        mapped=location.written_by_service,
        repository_id=location.repository_id,
        layer=location.layer,
    )
    median_norm = statistics.median_norm or sae.spec.median_norm
    return resolve_units(sae, edits, maxima=statistics.maxima, median_norm=median_norm)
