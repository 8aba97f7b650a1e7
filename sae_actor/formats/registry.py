"""All formats, and the choice among them."""

from __future__ import annotations

from ..errors import SAEInvalidError, SAEUnsupportedError
from .file_names import PICKLES
from .files import SaeFiles
from .format import Format
from .layout import Layout
from .readers import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    kissane,
    layer_file,
    llama_scope,
    llama_scope_r1,
    named_file,
    openai,
    qwen_scope,
    sae_lens,
    sparsify,
)
from .refused import refusal_of
from .vectors import format as vectors

FORMATS: tuple[Format, ...] = (
    sae_lens.FORMAT,
    gemma_scope.FORMAT,
    gemma_scope_2.FORMAT,
    llama_scope.FORMAT,
    llama_scope_r1.FORMAT,
    sparsify.FORMAT,
    dictionary_learning.FORMAT,
    openai.FORMAT,
    qwen_scope.FORMAT,
    *named_file.FORMATS,
    kissane.FORMAT,
    layer_file.FORMAT,
    vectors.FORMAT,
)
"""Every format that is read; the order means nothing, since two that match are an error."""


def read_layout(files: SaeFiles) -> Layout:
    """The layout of the SAE in `files`, by the one format that recognises it.

    `SAEInvalidError` (check `format`) for none or two of them, `SAEUnsupportedError` for what is refused by name.
    """
    if (refusal := refusal_of(files.names(), files.file)) is not None:
        raise refusal
    matching = [each for each in FORMATS if each.recognise(files)]
    if len(matching) == 1:
        if files.layer is not None and matching[0] is not vectors.FORMAT:
            why = f"layer chooses among vectors, and these files are an SAE ({matching[0].name})"
            raise SAEUnsupportedError(why, param="layer")
        return matching[0].read(files)
    if matching:
        several = ", ".join(each.name for each in matching)
        raise SAEInvalidError(f"the files are those of several formats: {several}", check="format")
    names = files.names()
    pickles = [name for name in names if name.endswith(PICKLES)]
    if len(pickles) > 1 and files.file is None:
        raise SAEInvalidError(f"name one file of this folder: {', '.join(pickles[:5])}", check="ambiguous")
    if pickles:
        files.resolve(pickles[0])
        raise SAEUnsupportedError(f"{pickles[0]} is a pickle of an unknown format", check="pickle", file=pickles[0])
    tensors = [name for name in names if name.endswith(".safetensors")]
    if files.file is None and len(tensors) > 1:
        raise SAEInvalidError(f"name one file of this folder: {', '.join(tensors[:5])}", check="ambiguous")
    shown = ", ".join(names[:8]) or "no file"
    raise SAEInvalidError(f"no known SAE format matches these files: {shown}", check="format")
