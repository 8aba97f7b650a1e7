"""`serve` and `demo`: from flags to settings, then the service. Torch is imported with the first model."""

from __future__ import annotations

import argparse
import sys

from ..config import Settings, check_exposure, demo_model_folder, load
from ..demo.model import prepare_model
from ..service.requested_model import check_path
from .render.progress import Bar

FLAGS = {"host": "server.host", "port": "server.port", "data_dir": "data.dir", "model": "model.id"}
"""Flag → key of the settings."""


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it. Raises `ConfigurationError`."""
    settings = _settings(arguments)
    check_exposure(settings)
    if not arguments.read_only:
        check_path(settings)
    return _run(settings, read_only=arguments.read_only, accept_truncation=arguments.accept_truncation)


def demo(arguments: argparse.Namespace) -> int:
    """Prepare the demo's model, then serve it. Raises what `prepare_model` does, and `ConfigurationError`."""
    settings = _settings(arguments)
    check_exposure(settings)
    if settings.model.id:
        print(f"sae-actor: the demo serves its own model, not [model] id {settings.model.id}", file=sys.stderr)
        settings = settings.replace("model.id", "")
    with Bar(sys.stderr) as bar:
        prepare_model(demo_model_folder(settings), bar.show)
    return _run(settings, demo=True)


def _settings(arguments: argparse.Namespace) -> Settings:
    given = {key: getattr(arguments, flag, None) for flag, key in FLAGS.items()}
    return load({key: value for key, value in given.items() if value is not None}, file=arguments.config)


def _run(
    settings: Settings, *, demo: bool = False, read_only: bool = False, accept_truncation: int | None = None
) -> int:
    from ..service.process import run  # noqa: PLC0415 - the web framework: a second that no client command should wait for

    return run(settings, demo=demo, read_only=read_only, accept_truncation=accept_truncation)
