"""`serve` and `demo`: from flags to settings, then the service. Torch is imported with the first model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ..config import ConfigurationError, Deployment, Settings, load, resolve, strangers
from ..demo.model import prepare_model
from ..models.files import CONFIG, is_hub_id, local_folder, local_path
from ..telemetry import logs
from .render.progress import Bar

FLAGS = {"host": "server.host", "port": "server.port", "data_dir": "data.dir", "model": "model.id"}
"""Flag → key of the settings."""


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it. Raises `ConfigurationError`."""
    deployment = resolve(_settings(arguments))
    if deployment.model is not None and not arguments.read_only:
        _check_path(deployment.model.model)
    return _run(
        deployment,
        lambda: resolve(_load(arguments)),
        read_only=arguments.read_only,
        accept_truncation=arguments.accept_truncation,
    )


def _check_path(model: str) -> None:
    """`ConfigurationError` for a path without a model; the hub checks what may be an id."""
    if is_hub_id(model):
        return
    path = local_path(model)
    try:
        if local_folder(model) is not None:
            return
        there, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        raise ConfigurationError(f"model.id: {model} cannot be read: {error.strerror}") from None
    if is_folder:
        why = f"the folder {path.absolute()} is not a model: it has no {CONFIG}"
    else:
        why = f"{path.absolute()} is not a folder" if there else f"there is no folder {path.absolute()}"
    raise ConfigurationError(f"model.id: {why}. Give a folder with a model, or an id of the hub such as org/name")


def demo(arguments: argparse.Namespace) -> int:
    """Prepare the demo's model, then serve it. Raises `ConfigurationError` and the errors of `prepare_model`."""
    settings = _settings(arguments)
    deployment = resolve(settings, demo=True)
    assert deployment.demo_model is not None
    if settings.model.id:
        print(f"sae-actor: the demo serves its own model, not [model] id {settings.model.id}", file=sys.stderr)
    with Bar(sys.stderr) as bar:
        prepare_model(deployment.demo_model, bar.show)
    return _run(deployment, lambda: resolve(_load(arguments), demo=True))


def _settings(arguments: argparse.Namespace) -> Settings:
    """Load the settings, and set up logging by them."""
    settings = _load(arguments)
    logs.set_up(settings.server.log_format, settings.server.log_level)
    for each in strangers():
        logs.say(f"warning: {each}")
    return settings


def _load(arguments: argparse.Namespace) -> Settings:
    given = {key: getattr(arguments, flag, None) for flag, key in FLAGS.items()}
    return load({key: value for key, value in given.items() if value is not None}, file=arguments.config)


def _run(
    deployment: Deployment,
    reread: Callable[[], Deployment],
    *,
    read_only: bool = False,
    accept_truncation: int | None = None,
) -> int:
    from ..service.process import run  # noqa: PLC0415 - the web framework takes a second

    return run(deployment, read_only=read_only, accept_truncation=accept_truncation, reread=reread)
