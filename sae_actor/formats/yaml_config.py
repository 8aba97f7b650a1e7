"""YAML settings, which a few releases have: plain data only."""

from __future__ import annotations

import yaml  # type: ignore[import-untyped]  # has no types; comes with huggingface_hub

from ..errors import SAEInvalidError
from .config import Config


def yaml_config(text: bytes, where: str) -> Config:
    """The mapping in `text`; `SAEInvalidError` for anything else. No aliases: ten lines of them fill a memory."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise SAEInvalidError(f"{where} has aliases", check="config", file=where)
        return Config(yaml.safe_load(text), where)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SAEInvalidError(f"{where} is not valid YAML: {str(error)[:120]}", check="config", file=where) from None
