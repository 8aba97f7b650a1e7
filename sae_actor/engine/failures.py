"""Failures of torch and transformers, as errors of `errors`.

The answer is a fresh object: it holds no traceback and no context, and so none of the tensors that the failing
frames held (raise it outside of the `except` block). Its text is ours: exceptions of the libraries can hold
URLs and tokens.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..errors import DeviceLostError, DiskFullError, InternalError, OutOfMemoryError, SAEError

T = TypeVar("T")

_ACCELERATOR_ERROR: type[BaseException] = getattr(torch, "AcceleratorError", torch.cuda.DeferredCudaCallError)
"""What a dead CUDA context raises, in the torch versions that have a class for it."""

_ALLOCATION = ("DefaultCPUAllocator", "can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_LOST = ("device-side assert", "illegal memory access", "unspecified launch failure", "CUDA error")


def attempt(act: Callable[[], T], doing: str, unexplained: type[SAEError] = InternalError, **fields: Any) -> T:
    """The result of `act`. Whatever it raises is raised as `explained`; without an explanation, as `unexplained` with
    these fields."""
    failure: SAEError
    try:
        return act()
    except Exception as error:  # the libraries can raise anything
        failure = explained(error, doing)
    # Outside of the block above: the traceback, which holds the tensors, is gone.
    raise unexplained(failure.detail, **fields) if failure.code == InternalError.code else failure


def explained(error: BaseException, doing: str) -> SAEError:
    """`error` as one of ours; `doing` says what failed, such as "loading the model"."""
    if isinstance(error, SAEError):
        return type(error)(error.detail, **error.fields)
    text = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(each in text for each in _ALLOCATION):
        return OutOfMemoryError(f"not enough memory for {doing}")
    if isinstance(error, _ACCELERATOR_ERROR) or any(each in text for each in _LOST):
        return DeviceLostError(f"the device failed while {doing}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"the disk is full ({doing})")
    return InternalError(f"{doing} failed ({type(error).__name__})")
