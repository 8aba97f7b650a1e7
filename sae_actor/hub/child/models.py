"""The files of a model, in the child process: into the user's own hub cache, as other tools expect them there.

The small files come first, then the safetensors files that the index names: a model of an unknown type, or whose
quantised weights nothing here reads, costs no weights, and nothing that could run is fetched. What a cancelled or
killed fetch leaves is continued by the next one; nothing in that cache is ever removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import constants

from ...errors import ModelLoadError, ModelNotFoundError
from ...models.files import CONFIG, is_complete, is_small, read_config, refuse_pointers, weight_names
from ...models.quantization import has_cuda, quantization_of
from ...ports import OnProgress
from ..layout import Repository, link_blob, refuse_full, write_durably
from ..protocol import Fetched, ModelJob
from .meter import Meter
from .remote import RemoteFile, RemoteHub
from .transfer import Transfer, retried


class ModelFetch:
    """One model job; `send` takes the progress."""

    def __init__(self, job: ModelJob, send: OnProgress) -> None:
        self._job = job
        self._repository = Repository.of(Path(constants.HF_HUB_CACHE), job.model)
        self._meter = Meter(send, "fetch", job.model)

    def run(self) -> Fetched:
        """Every error is an `SAEError`, or an OSError of the disk. Without the network if possible."""
        commit = self._on_disk()
        if commit is not None or constants.is_offline_mode():
            return Fetched(commit=commit)
        job, hub = self._job, RemoteHub(self._job.patience, self._job.download_hosts)
        self._meter.phase("resolving")
        commit = retried(partial(hub.commit, job.model, job.revision), job.patience, self._meter)
        self._meter.phase("listing")
        listed = retried(partial(hub.files, job.model, commit), job.patience, self._meter)
        by_name = {file.path: file for file in listed}
        if CONFIG not in by_name:
            raise ModelNotFoundError(f"{job.model} is not a model: it has no {CONFIG}", model=job.model)
        transfer = Transfer(hub, self._repository, job.patience, self._meter)
        small = [file for name, file in sorted(by_name.items()) if is_small(name)]
        self._bring(transfer, commit, small)
        if not job.weights:
            return Fetched(commit=commit)
        names = weight_names(self._repository.snapshot(commit))
        quantization_of(read_config(self._repository.snapshot(commit)), job.quantization, cuda=has_cuda(job.device))
        if any(name not in by_name for name in names):
            raise ModelLoadError(f"{job.model} has no weights as safetensors; other kinds are not read")
        self._bring(transfer, commit, [by_name[name] for name in names])
        refuse_pointers(self._repository.snapshot(commit), [*(file.path for file in small), *names])
        if job.revision != commit:
            write_durably(self._repository.ref(job.revision), commit.encode())
        return Fetched(commit=commit)

    def _on_disk(self) -> str | None:
        """The commit of the revision, if all that is wanted of the model is there."""
        commit = self._repository.commit_of(self._job.revision)
        if commit is None:
            return None
        snapshot = self._repository.snapshot(commit)
        there = is_complete(snapshot) if self._job.weights else (snapshot / CONFIG).is_file()
        return commit if there else None

    def _bring(self, transfer: Transfer, commit: str, files: Sequence[RemoteFile]) -> None:
        """Fetch and verify each file, and let the snapshot lead to it."""
        self._repository.folder.mkdir(parents=True, exist_ok=True)
        self._meter.total += sum(file.bytes for file in files)
        needed = sum(file.bytes for file in files if not self._repository.blob(file.digest).exists())
        refuse_full(self._repository.folder, "model", needed, self._job.reserve_bytes)
        for file in files:
            transfer.obtain(self._job.model, commit, file, anew=False)
            link_blob(self._repository, commit, file.path, file.digest)
