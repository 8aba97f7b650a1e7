"""The description of an SAE in memory, and where it belongs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..domain.refs import HookPoint, SaeDescription


@dataclass(frozen=True)
class SaeSpec:
    """The description of the files, with the type that the weights have in memory."""

    format: str
    architecture: str
    d_in: int
    d_sae: int
    d_out: int
    hook_point: HookPoint | None
    hook_point_out: HookPoint | None
    """Where a transcoder writes; None for an SAE."""
    hook_name: str | None
    trained_on: str | None
    trained_layer: int | None
    dtype: str
    """Type of the weights in memory, and of the arithmetic."""
    stored_dtype: str
    """Type of the weights on disk."""
    prepend_bos: bool | None = None
    """Trained on texts that begin with BOS; None if the files do not say."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Settings of the files that play no part → why."""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, description: SaeDescription, dtype: str, warnings: tuple[str, ...] = ()) -> SaeSpec:
        return cls(
            format=description.format,
            architecture=description.architecture,
            d_in=description.d_in,
            d_sae=description.d_sae,
            d_out=description.d_out,
            hook_point=description.hook_point,
            hook_point_out=description.hook_point_out,
            hook_name=description.hook_name,
            trained_on=description.trained_on,
            trained_layer=description.trained_layer,
            dtype=dtype,
            stored_dtype=description.dtype,
            prepend_bos=description.prepend_bos,
            ignored=description.ignored,
            warnings=description.warnings + warnings,
        )
