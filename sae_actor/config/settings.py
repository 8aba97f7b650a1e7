"""The settings: a key is one field of one section, and one documented line in `config.toml`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ..domain.commands import Device, ModelDtype, Revision

Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Token: TypeAlias = Annotated[
    str,
    Meta(pattern=r"\A[\x21-\x7e]*\Z", max_length=512, description="up to 512 visible ASCII characters, no space"),
]
Line: TypeAlias = Annotated[
    str, Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z", max_length=4096, description="text without control characters")
]
PublicName: TypeAlias = Annotated[
    str,
    Meta(pattern=r"\A[^\x00-\x20\x7f]*\Z", max_length=256, description="up to 256 characters without spaces"),
]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=4096)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0.05, le=3600)]
HostName: TypeAlias = Annotated[
    str,
    Meta(pattern=r"\A([a-z0-9_.-]{1,253}|\[[0-9a-f:.]{2,45}\])\Z", description="a host name in small letters, no port"),
]
WebOrigin: TypeAlias = Annotated[
    str,
    Meta(pattern=r"\Ahttps?://[a-z0-9_.\[\]:-]{1,300}\Z", description="an origin such as https://host.example:8443"),
]


LogFormat: TypeAlias = Literal["text", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]


class ConfigurationError(Exception):
    """The settings cannot be used; the message names the key."""

    exit_code: ClassVar[int] = 78


class FlagError(ConfigurationError):
    """A command-line flag has an invalid value: wrong usage."""

    exit_code: ClassVar[int] = 64


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ServerSection(_Section, frozen=True, kw_only=True):
    host: Annotated[str, Meta(pattern=r"\A[^\s/]+\Z", description="a host name or an address")] = "127.0.0.1"
    port: Port = 8000
    token: Token = ""
    tokens: tuple[Line, ...] = ()
    tokens_file: Line = ""
    session_hours: Annotated[float, Meta(gt=0, le=8760)] = 12.0
    hosts: tuple[HostName, ...] = ()
    trusted_proxies: tuple[Line, ...] = ()
    cors_origins: tuple[WebOrigin, ...] = ()
    tls_certificate: Line = ""
    tls_key: Line = ""
    max_connections: Annotated[int, Meta(ge=8, le=2**16)] = 4096
    request_seconds: Seconds = 20.0
    stalled_seconds: Seconds = 20.0
    max_readers: Annotated[int, Meta(ge=1, le=2**16)] = 2048
    heartbeat_seconds: Seconds = 15.0
    drain_seconds: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    log_format: LogFormat = "text"
    log_level: LogLevel = "warning"
    opentelemetry: bool = False


class DataSection(_Section, frozen=True, kw_only=True):
    dir: Line = ""


class ModelSection(_Section, frozen=True, kw_only=True):
    id: Line = ""
    name: PublicName = ""
    revision: Revision = "main"
    dtype: ModelDtype = "auto"
    device: Device = "auto"
    quantization: Annotated[Literal["", "int8", "nf4"], Meta(description="int8, nf4 or empty")] = ""


class EngineSection(_Section, frozen=True, kw_only=True):
    drain_seconds: Annotated[float, Meta(ge=0, le=3600)] = 3.0
    deadline_seconds: Annotated[float, Meta(gt=0, le=86400)] = 600.0
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    max_running: Count = 32
    max_waiting: Count = 1024
    prompt_tokens: Count = 512
    cache_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 0


class GpuSection(_Section, frozen=True, kw_only=True):
    max_attachments: Annotated[int, Meta(ge=1, le=64)] = 1


class HubSection(_Section, frozen=True, kw_only=True):
    import_roots: tuple[Line, ...] = ()
    quota_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    download_hosts: tuple[Line, ...] = ("huggingface.co", "hf.co")


class AuditSection(_Section, frozen=True, kw_only=True):
    record_text: bool = False


class DemoSection(_Section, frozen=True, kw_only=True):
    model_dir: Line = ""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All sections; the keys are documented in `config.toml`."""

    server: ServerSection = ServerSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    engine: EngineSection = EngineSection()
    gpu: GpuSection = GpuSection()
    hub: HubSection = HubSection()
    audit: AuditSection = AuditSection()
    demo: DemoSection = DemoSection()

    def replace(self, key: str, value: object) -> Settings:
        """These settings with `section.name` set to an already valid value."""
        section, name = key.split(".")
        changed = msgspec.structs.replace(getattr(self, section), **{name: value})
        return msgspec.structs.replace(self, **{section: changed})
