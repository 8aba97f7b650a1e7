"""What the settings come to on this machine: found out once, before anything is bound or opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..domain.commands import LoadModel
from ..domain.structs import filled
from .access import Access
from .checks import check_exposure, is_loopback, tls_files
from .folders import data_folder, demo_model_folder
from .settings import ConfigurationError, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    settings: Settings
    """Without `[server] token`, which `access` knows by its digest."""
    folder: Path
    """The data folder."""
    model: LoadModel | None
    """The model that is to be there; None: whichever the log has. The demo has its own."""
    demo_model: Path | None
    """The folder of the demo's model; None: not the demo."""
    access: Access
    tls: tuple[Path, Path] | None
    """Certificate and key; None: HTTP without TLS."""
    hosts: tuple[str, ...]
    """Host names that a request may be addressed to; `*`: any."""

    def url(self, host: str, port: int) -> str:
        """Of the service at an address that it listens on."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{_bracketed(host)}:{port}"


def resolve(settings: Settings, *, demo: bool = False) -> Deployment:
    """Raises `ConfigurationError` where `check_exposure` or `tls_files` does, and for a model that cannot be named."""
    server, section = settings.server, settings.model
    try:
        model = filled(LoadModel, section, model=section.id, quantization=section.quantization or None)
    except ValueError as error:
        raise ConfigurationError(f"model.revision: {error}") from None
    own = ("localhost", "127.0.0.1", "[::1]", _bracketed(server.host))
    return Deployment(
        settings=settings.replace("server.token", ""),
        folder=data_folder(settings, demo=demo),
        model=model if section.id and not demo else None,
        demo_model=demo_model_folder(settings) if demo else None,
        access=check_exposure(settings),
        tls=tls_files(settings),
        hosts=(*own, *server.hosts) if server.hosts or is_loopback(server.host) else ("*",),
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
