"""Settings from flags over environment over file over the built-in values, which are those of `config.toml`.

    load({"server.port": 9000})     flags > SAE_ACTOR_<SECTION>_<KEY> > --config or SAE_ACTOR_CONFIG > built-in

Nothing but the keys of the settings is read. Everything wrong raises `ConfigurationError`, which names the key
and where its value came from.
"""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from .admissible import admissible
from .settings import ConfigurationError, FlagError, Settings
from .variables import CONFIG_VARIABLE, PREFIX, meant, strange_names

_SECTIONS: dict[str, Any] = {section.name: section.type for section in msgspec.structs.fields(Settings)}
_TYPES: dict[str, Any] = {
    f"{section}.{field.name}": field.type
    for section, struct in _SECTIONS.items()
    for field in msgspec.structs.fields(struct)
}
"""`section.key` → its type."""
_BY_COMMA = {"server.tokens", "server.hosts", "server.trusted_proxies", "server.cors_origins"}
"""Lists whose parts hold colons; in the environment commas stand between them."""


def load(
    flags: Mapping[str, object] | None = None,
    *,
    file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings in force.

    `flags` maps `section.key` to the value of a flag that was given, `file` is what `--config` named. Raises
    `ConfigurationError`.
    """
    named = environment.get(CONFIG_VARIABLE)
    if file is None and named:
        file = Path(named)
    settings = _read(file) if file is not None else Settings()
    for variable, raw in sorted(environment.items()):
        if (key := _key_of(variable)) is not None:
            settings = settings.replace(key, _from_text(key, raw, variable))
    for key, value in (flags or {}).items():
        settings = settings.replace(key, _convert(key, value, f"flag for {key}", strict=True, fault=FlagError))
    return settings


def _read(file: Path) -> Settings:
    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: not TOML: {error}") from error
    settings = Settings()
    for section, keys in found.items():
        if section not in _SECTIONS or not isinstance(keys, dict):
            raise ConfigurationError(f"{file}: {section}: no such section")
        for name, value in keys.items():
            key = f"{section}.{name}"
            if key not in _TYPES:
                raise ConfigurationError(f"{file}: {key}: no such key")
            settings = settings.replace(key, _convert(key, value, f"{file}: {key}", strict=True))
    return settings


def _key_of(variable: str) -> str | None:
    """`SAE_ACTOR_SERVER_PORT` → `server.port`; None for what is of no section, an error for an unknown key of one."""
    if not _of_a_section(variable):
        return None
    section, _, name = variable.removeprefix(PREFIX).lower().partition("_")
    if f"{section}.{name}" not in _TYPES:
        raise ConfigurationError(f"{variable}: no such key: {section}.{name}{meant(variable, _TYPES)}")
    return f"{section}.{name}"


def strangers(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Warnings about variables with our prefix that are not settings: one sentence each, without the value."""
    return [
        f"{variable} of the environment is not a setting{meant(variable, _TYPES)}"
        for variable in strange_names(environment)
        if not _of_a_section(variable)
    ]


def _of_a_section(variable: str) -> bool:
    section, _, name = variable.removeprefix(PREFIX).lower().partition("_")
    return variable.startswith(PREFIX) and bool(name) and section in _SECTIONS


def _from_text(key: str, raw: str, variable: str) -> object:
    """Environment variables are text: numbers and true/false are read, lists are split as PATH is, or at commas."""
    if typing.get_origin(_TYPES[key]) is tuple:
        parts = [part.strip() for part in raw.split(",")] if key in _BY_COMMA else raw.split(os.pathsep)
        return _convert(key, [part for part in parts if part], variable, strict=True)
    return _convert(key, raw, variable, strict=False)


def _convert(
    key: str, value: object, where: str, *, strict: bool, fault: type[ConfigurationError] = ConfigurationError
) -> object:
    try:
        return msgspec.convert(value, _TYPES[key], strict=strict)
    except msgspec.ValidationError:
        # Not the value: it may be a token.
        raise fault(f"{where}: it must be {admissible(_TYPES[key])}") from None
