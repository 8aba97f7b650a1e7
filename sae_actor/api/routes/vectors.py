"""`/api/vectors`: directions of one's own, kept by the service."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from ...domain.events import MadeFrom
from ...domain.refs import HookPoint
from ...domain.structs import filled
from ...domain.views.saes import Sae
from ...ports import NewVectors
from ..operations import operation
from ..requests import body_of
from ..submission import REFUSALS
from ..types import Answer, AnyRequest
from ..vectors import KEPT, VectorsName, keep

MAX_VALUES = 2**20
"""Of all rows together."""
MAX_NAMES_BYTES = 64 << 10
"""Of all names together, which go on record."""

RowName: TypeAlias = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z", max_length=200)]
Number: TypeAlias = Annotated[float, Meta(ge=-3.4e38, le=3.4e38)]
"""Within float32."""
Row: TypeAlias = Annotated[tuple[Number, ...], Meta(min_length=1, max_length=65536)]

Names: TypeAlias = Annotated[
    tuple[RowName, ...], Meta(max_length=1024, description="of the rows; shown as labels of features")
]
MedianNorm: TypeAlias = Annotated[
    float, Meta(gt=0, le=1e30, description="the median |x| at the hook point, for strengths of unit `norm`")
]


class VectorsBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Vectors, and where they are written."""

    name: VectorsName
    hook_point: HookPoint
    rows: Annotated[tuple[Row, ...], Meta(min_length=1, max_length=1024, description="each one vector; all as long")]
    names: Names | None = None
    median_norm: MedianNorm | None = None

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows}
        if len(widths) > 1:
            raise ValueError("rows must all be as long")
        if len(self.rows) * widths.pop() > MAX_VALUES:
            raise ValueError(f"rows have more than {MAX_VALUES} numbers")
        for at, row in enumerate(self.rows):
            if not any(row):
                raise ValueError(f"row {at} is all zeros, which is no direction")
        if self.names is not None and len(self.names) != len(self.rows):
            raise ValueError(f"names has {len(self.names)} names for {len(self.rows)} rows")
        if sum(len(name.encode()) + 4 for name in self.names or ()) > MAX_NAMES_BYTES:
            raise ValueError(f"names have more than {MAX_NAMES_BYTES} bytes")


@operation(
    "POST", "/api/vectors", "Keep vectors, as an SAE without an encoder",
    body=VectorsBody, returns=Sae, answers=KEPT,
    examples={"two directions": {"name": "sea", "hook_point": {"kind": "resid_post", "layer": 12},
                                 "rows": [[0.25, -1.5, 3.0], [1.0, 0.0, -0.5]], "names": ["calm", "storm"]}},
    errors=(*REFUSALS, "disk_full", "read_only"), command=True, max_body=32 * 1024 * 1024, tag="saes",
)  # fmt: skip
async def post_vectors(request: AnyRequest) -> Answer:
    body: VectorsBody = await body_of(request, VectorsBody)
    return await keep(request, filled(NewVectors, body, names=body.names or ()), MadeFrom(kind="rows"))
