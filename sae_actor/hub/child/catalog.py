"""The SAEs of a repository from its file list and small settings files, before a byte of weights is fetched.

Runs in the child process, which alone talks to the hub.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from huggingface_hub import hf_hub_url

from ...errors import SAEError
from ...ports import CatalogEntry, OnProgress
from ..protocol import CatalogJob, Listed
from ..selection import Found, find
from .meter import Meter
from .remote import RemoteFile, RemoteHub, TransientError
from .transfer import retried

MAX_CONFIG_BYTES = 1 << 20
CONFIG_THREADS = 16
CONFIG_SECONDS = 10.0
"""Settings files are read for this long; remaining entries are listed without widths."""

_WIDTHS_IN = ("d_in", "d_model", "input_dim", "activation_dim", "act_size")
_WIDTHS_SAE = ("d_sae", "num_latents", "dict_size", "d_hidden", "width")
_HOOKS = ("hook_name", "hook_point", "hook_point_in", "hf_hook_point_in", "act_name", "submodule_name")


def listing(job: CatalogJob, send: OnProgress) -> Listed:
    """All SAEs of the repository, ordered by path."""
    meter = Meter(send, "catalog", job.repository_id)
    hub = RemoteHub(job.patience, job.download_hosts)
    meter.phase("resolving")
    commit = retried(partial(hub.commit, job.repository_id, job.revision), job.patience, meter)
    meter.phase("listing")
    listed = retried(partial(hub.files, job.repository_id, commit), job.patience, meter)
    files = {file.path: file for file in listed}
    found = find(files)
    settings = _settings(hub, job, commit, (files[path] for sae in found for path in sae.configs[:1]))
    entries = (_entry(sae, files, settings) for sae in found)
    return Listed(entries=tuple(entry for entry in entries if entry is not None))


def _entry(found: Found, files: dict[str, RemoteFile], settings: dict[str, dict[str, Any]]) -> CatalogEntry | None:
    """The settings; None if they belong to something else than the names promise."""
    read = next((settings[path] for path in found.configs[:1] if path in settings), None)
    formats = found.formats if read is None else found.agreeing(read)
    if not formats:
        return None
    config = {} if read is None else _flat(read)
    d_in = _count(config, _WIDTHS_IN)
    d_sae = _count(config, _WIDTHS_SAE)
    factor = config.get("expansion_factor")
    if d_sae is None and d_in is not None and isinstance(factor, int) and 0 < factor < 1 << 20:
        d_sae = d_in * factor
    return CatalogEntry(
        path=found.path,
        format=formats[0].name,
        file_size_bytes=sum(files[path].bytes for path in found.files),
        d_in=d_in,
        d_sae=d_sae,
        hook_name=_hook(config),
    )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """With what dictionary_learning keeps in a section of its own."""
    trainer = config.get("trainer")
    return {**config, **trainer} if isinstance(trainer, dict) else config


def _count(config: dict[str, Any], keys: Iterable[str]) -> int | None:
    values = (config.get(key) for key in keys)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 < v < 1 << 31), None)


def _hook(config: dict[str, Any]) -> str | None:
    nested = config.get("metadata")
    places = [nested, config] if isinstance(nested, dict) else [config]
    values = (place.get(key) for place in places for key in _HOOKS)
    return next((v for v in values if isinstance(v, str) and 0 < len(v) <= 200), None)


def _settings(hub: RemoteHub, job: CatalogJob, commit: str, configs: Iterable[RemoteFile]) -> dict[str, dict[str, Any]]:
    """Contents of the settings files that could be read in time; one that cannot leaves its entry without widths."""
    end = time.monotonic() + CONFIG_SECONDS

    def read(file: RemoteFile) -> tuple[str, dict[str, Any]] | None:
        if time.monotonic() > end:
            return None
        try:
            text = _text(hub, job.repository_id, commit, file)
            config = json.loads(text)
        except (SAEError, TransientError, ValueError, RecursionError):
            return None
        return (file.path, config) if isinstance(config, dict) else None

    wanted = {file.path: file for file in configs if file.bytes <= MAX_CONFIG_BYTES}
    with ThreadPoolExecutor(CONFIG_THREADS) as threads:
        return dict(each for each in threads.map(read, wanted.values()) if each is not None)


def _text(hub: RemoteHub, repository_id: str, commit: str, file: RemoteFile) -> bytes:
    """The bytes of a small file; ValueError if they differ from the list."""
    text = b""
    with hub.body(hf_hub_url(repository_id, file.path, revision=commit), 0) as answer:
        for chunk in answer.iter_raw():
            text += chunk
            if len(text) > file.bytes:
                break
    known = hashlib.sha1(b"blob %d\0" % len(text) + text, usedforsecurity=False) if file.git else hashlib.sha256(text)
    if known.hexdigest() != file.digest:
        raise ValueError("other bytes than listed")
    return text
