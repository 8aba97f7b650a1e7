"""Free memory, and what an SAE may take of it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import OutOfMemoryError

SHARE = 0.5
"""Share of the free memory for the KV cache if no size is given."""
_MEMINFO = Path("/proc/meminfo")
_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available(device: torch.device) -> int | None:
    """Free bytes; None if the system does not report them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has reserved and does not use is free for it as well.
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [left for left in (_of_machine(), *(_of_group(*files) for files in _LIMITS)) if left is not None]
    return min(found, default=None)


def cache_budget(configured: int, device: torch.device, longest: int) -> int:
    """Bytes for the KV cache: the setting, or a share of what is free, or those of one generation of full length."""
    if configured:
        return configured
    free = available(device)
    return longest if free is None else int(SHARE * free)


def check_room(needed: int, device: torch.device, promised: int) -> None:
    """`OutOfMemoryError` with both numbers if an SAE of that size does not fit on the device. Memory `promised` to
    generations counts as taken."""
    free = available(device)
    if free is not None and needed > (free := max(0, free - promised)):
        raise OutOfMemoryError(
            f"the SAE needs {needed} bytes, the device has {free} free", needed_bytes=needed, available_bytes=free
        )


def _of_machine() -> int | None:
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _of_group(limit: Path, used: Path) -> int | None:
    """What a container may still take."""
    try:
        most, now = limit.read_text().strip(), int(used.read_text())
    except (OSError, ValueError):
        return None
    return max(0, int(most) - now) if most.isdigit() and int(most) < 2**60 else None
