"""Access: tokens with names and roles, known only by their digests.

    alice viewer 5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5

A line is a name, a role and the sha256 of the token in hex. A viewer reads; a user generates and sees what is its own;
an operator commands as well. The name is the `principal` of the events that its requests lead to. Fields may follow:

    presets=calm,bold    a user generates under these presets or under no intervention, not otherwise
    sae=ID               a viewer gets the events that name this SAE
    running=4            so many texts of it run at a time,
    waiting=32           so many more wait for them, and further ones are refused;
    tokens_per_minute=60000    prompts and new tokens (`generations.quotas` says how they count)
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, cast, get_args

from ..limits import Quota

Role: TypeAlias = Literal["viewer", "user", "operator"]

SINGLE = "token"
"""Name of the one token of `[server] token`."""
RESERVED = frozenset({SINGLE, "local", "system", "configuration", "demo"})
"""Reserved names: principals that do not hold a named token."""
MOST = 256
"""Most grants: each is compared with every token that comes."""

_MAKING: tuple[Role, ...] = ("user", "operator")
"""Roles that make texts."""
_QUOTA = {"running": 1, "waiting": 0, "tokens_per_minute": 1}
"""Field of a line with a number → the least it may be."""
_FIELDS: dict[str, tuple[Role, ...]] = {"presets": ("user",), "sae": ("viewer",), **dict.fromkeys(_QUOTA, _MAKING)}
"""Field of a line → the roles that it is for."""
_PRESET = re.compile(r"[a-z0-9._-]{1,64}")
_SAE_ID = re.compile(r"[A-Za-z0-9._-]{1,119}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Grant:
    """What the holder of one token may do; `digest` is the sha256 of the token, 32 bytes."""

    name: str
    role: Role
    digest: bytes
    presets: tuple[str, ...] | None = None
    """The presets that it may generate under, besides no intervention; None: under anything."""
    sae: str | None = None
    """The SAE whose events it gets; None: all events."""
    quota: Quota = field(default=Quota(), compare=False)
    """A grant with another quota is the same one: what it has begun goes on."""


def digest_of(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def operator(token: str) -> Grant:
    """The grant of the single token without a name."""
    return Grant(SINGLE, "operator", digest_of(token.encode()))


def read_line(line: str) -> Grant:
    """Raises `ValueError`, which says what is wrong without repeating what may be a token."""
    parts = line.split()
    if len(parts) < 3:
        raise ValueError("must be a name, a role and the sha256 of the token in hex")
    name, role, digest, *fields = parts
    if not _NAME.fullmatch(name):
        raise ValueError("the name must be 1 to 64 of A-Z a-z 0-9 . _ @ -, with a letter or digit first")
    if name in RESERVED:
        raise ValueError(f"the name {name} is reserved in the log")
    if role not in get_args(Role):
        raise ValueError(f"{name}: the role must be one of {', '.join(get_args(Role))}")
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{name}: the sha256 of the token must be 64 hex digits")
    return _with_fields(Grant(name, cast(Role, role), bytes.fromhex(digest)), fields)


def _with_fields(grant: Grant, fields: Iterable[str]) -> Grant:
    given: dict[str, str] = {}
    for each in fields:
        which, equals, value = each.partition("=")
        if not equals or which not in _FIELDS:
            known = ", ".join(f"{name}=" for name in _FIELDS)
            raise ValueError(f"{grant.name}: unknown field; what may follow the sha256 is {known}")
        if which in given:
            raise ValueError(f"{grant.name}: {which}= is given twice")
        if grant.role not in _FIELDS[which]:
            raise ValueError(f"{grant.name}: {which}= is for the role {' or '.join(_FIELDS[which])}")
        given[which] = value
    presets = tuple(dict.fromkeys(given["presets"].split(","))) if "presets" in given else None
    if not all(_PRESET.fullmatch(each) for each in presets or ()):
        raise ValueError(f"{grant.name}: presets= must be names of presets, separated by commas")
    sae = given.get("sae")
    if sae is not None and not _SAE_ID.fullmatch(sae):
        raise ValueError(f"{grant.name}: sae= must be the id of an SAE")
    return replace(grant, presets=presets, sae=sae, quota=_quota(grant.name, given))


def _quota(name: str, given: Mapping[str, str]) -> Quota:
    numbers = {which: given[which] for which in _QUOTA if which in given}
    for which, number in numbers.items():
        if not _NUMBER.fullmatch(number) or int(number) < _QUOTA[which]:
            raise ValueError(f"{name}: {which}= must be a whole number from {_QUOTA[which]} to 999999999")
    return Quota(**{which: int(number) for which, number in numbers.items()})


class Access:
    """All grants; empty: no token is required."""

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        """Raises `ValueError` where two grants have one name or one token, or where there are too many."""
        self.grants = tuple(grants)
        if len(self.grants) > MOST:
            raise ValueError(f"{len(self.grants)} tokens; at most {MOST} are allowed")
        for what in ("name", "digest"):
            seen: set[object] = set()
            for grant in self.grants:
                if getattr(grant, what) in seen:
                    raise ValueError(f"{grant.name}: another token has this {'name' if what == 'name' else 'sha256'}")
                seen.add(getattr(grant, what))

    def __bool__(self) -> bool:
        return bool(self.grants)

    @property
    def quotas(self) -> dict[str, Quota]:
        """By name, of everybody."""
        return {grant.name: grant.quota for grant in self.grants}

    def of(self, token: bytes) -> Grant | None:
        """The token's grant. All grants are compared in full, so that the time reveals nothing."""
        digest, found = digest_of(token), None
        for grant in self.grants:
            if hmac.compare_digest(digest, grant.digest):
                found = grant
        return found
