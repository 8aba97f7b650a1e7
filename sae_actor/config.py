"""Settings: flags over environment over file over the built-in values, which are those of `config.toml`.

    load({"server.port": 9000})     flags > SAE_ACTOR_<SECTION>_<KEY> > --config or SAE_ACTOR_CONFIG > built-in

A key is one field of one section below, and one documented line in `config.toml`; nothing else is read. Everything
wrong raises `ConfigurationError`, which names the key and where its value came from.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from .access import Access, Grant, operator, read_line
from .domain.admissible import admissible
from .domain.commands import Device, ModelDtype, Revision
from .variables import CONFIG_VARIABLE, PREFIX, meant, strange_names

Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Token: TypeAlias = Annotated[
    str,
    Meta(pattern=r"\A[\x21-\x7e]*\Z", max_length=512, description="up to 512 visible ASCII characters, no space"),
]
Line: TypeAlias = Annotated[
    str, Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z", max_length=4096, description="text without control characters")
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
    """A flag of the command line has a value that cannot be: wrong usage."""

    exit_code: ClassVar[int] = 64


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Server(_Section, frozen=True, kw_only=True):
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
    log_format: LogFormat = "text"
    log_level: LogLevel = "warning"
    opentelemetry: bool = False


class Data(_Section, frozen=True, kw_only=True):
    dir: Line = ""


class Model(_Section, frozen=True, kw_only=True):
    id: Line = ""
    revision: Revision = "main"
    dtype: ModelDtype = "auto"
    device: Device = "auto"


class Engine(_Section, frozen=True, kw_only=True):
    drain_seconds: Annotated[float, Meta(ge=0, le=3600)] = 3.0
    deadline_seconds: Annotated[float, Meta(gt=0, le=86400)] = 600.0
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    max_running: Count = 32
    max_waiting: Count = 64
    prompt_tokens: Count = 512
    cache_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 0


class Gpu(_Section, frozen=True, kw_only=True):
    max_attachments: Annotated[int, Meta(ge=1, le=64)] = 1


class Hub(_Section, frozen=True, kw_only=True):
    import_roots: tuple[Line, ...] = ()
    quota_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    download_hosts: tuple[Line, ...] = ("huggingface.co", "hf.co")


class Audit(_Section, frozen=True, kw_only=True):
    record_text: bool = False


class Demo(_Section, frozen=True, kw_only=True):
    model_dir: Line = ""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All sections; the keys are documented in `config.toml`."""

    server: Server = Server()
    data: Data = Data()
    model: Model = Model()
    engine: Engine = Engine()
    gpu: Gpu = Gpu()
    hub: Hub = Hub()
    audit: Audit = Audit()
    demo: Demo = Demo()

    def replace(self, key: str, value: object) -> Settings:
        """These settings with `section.name` set to an already valid value."""
        section, name = key.split(".")
        changed = msgspec.structs.replace(getattr(self, section), **{name: value})
        return msgspec.structs.replace(self, **{section: changed})


_SECTIONS: dict[str, Any] = {section.name: section.type for section in msgspec.structs.fields(Settings)}
_TYPES: dict[str, Any] = {
    f"{section}.{field.name}": field.type
    for section, struct in _SECTIONS.items()
    for field in msgspec.structs.fields(struct)
}
"""`section.key` → its type."""
_BY_COMMA = {"server.tokens", "server.hosts", "server.trusted_proxies", "server.cors_origins"}
"""Lists whose parts hold colons; in the environment commas stand between them."""
MAX_TOKENS_FILE = 64 * 1024


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
    """What to say of variables that begin as ours do and set nothing: one sentence each, without the value."""
    return [
        f"{variable} of the environment sets nothing{meant(variable, _TYPES)}"
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
        raise fault(f"{where}: it takes {admissible(_TYPES[key])}") from None


def data_folder(settings: Settings, *, demo: bool = False) -> Path:
    """`[data] dir`, absolute; where it is empty the default folder, for the demo the one inside it."""
    if settings.data.dir:
        return Path(settings.data.dir).expanduser().absolute()
    default = _xdg("XDG_DATA_HOME", ".local/share") / "sae-actor"
    return default / "demo" if demo else default


def demo_model_folder(settings: Settings) -> Path:
    """Where the demo's model is prepared and kept, whatever data folder the demo runs in."""
    if settings.demo.model_dir:
        return Path(settings.demo.model_dir).expanduser().absolute()
    return _xdg("XDG_CACHE_HOME", ".cache") / "sae-actor" / "demo"


def _xdg(variable: str, fallback: str) -> Path:
    """The base directory; a relative value counts as none, as its specification asks."""
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / fallback


def grants(settings: Settings) -> tuple[Grant, ...]:
    """Everyone who holds a token: `[server] token`, `tokens` and the lines of `tokens_file`.

    Raises `ConfigurationError`, also for a file that others than its owner may read or write.
    """
    server = settings.server
    lines = [(f"server.tokens: entry {number}", line) for number, line in enumerate(server.tokens, 1)]
    if server.tokens_file:
        named = [
            (f"{server.tokens_file}: line {number}", line)
            for number, line in enumerate(_private_text(Path(server.tokens_file).expanduser()).splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not named:
            raise ConfigurationError(f"server.tokens_file: {server.tokens_file} names nobody")
        lines += named
    found = [operator(server.token)] if server.token else []
    for where, line in lines:
        try:
            found.append(read_line(line))
        except ValueError as error:
            raise ConfigurationError(f"{where}: {error}") from None
    try:
        return Access(found).grants
    except ValueError as error:
        raise ConfigurationError(f"server.tokens: {error}") from None


def _private_text(path: Path) -> str:
    """A file that only its owner may read and write."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise ConfigurationError(f"server.tokens_file: {path} is open to others than its owner: chmod 600 it")
            raw = file.read(MAX_TOKENS_FILE + 1)
        if len(raw) > MAX_TOKENS_FILE:
            raise ConfigurationError(f"server.tokens_file: {path} is larger than {MAX_TOKENS_FILE} bytes")
        return raw.decode()
    except OSError as error:
        raise ConfigurationError(f"server.tokens_file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"server.tokens_file: {path}: not UTF-8") from error


def check_exposure(settings: Settings) -> None:
    """Whoever reaches the port commands the service, so only a token opens it beyond this machine.

    Raises `ConfigurationError`, also for a trusted proxy that is no address.
    """
    if not grants(settings) and not is_loopback(settings.server.host):
        raise ConfigurationError(
            f"server.host: {settings.server.host} is reachable from other machines, and no token is set: "
            "set SAE_ACTOR_SERVER_TOKEN or SAE_ACTOR_SERVER_TOKENS_FILE, or listen on 127.0.0.1"
        )
    for proxy in settings.server.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise ConfigurationError(f"server.trusted_proxies: {error}") from None


def tls_files(settings: Settings) -> tuple[Path, Path] | None:
    """Certificate and key, or None for HTTP without TLS.

    Both are read once here: `ConfigurationError` where they do not belong together or ask for a pass phrase.
    """
    server = settings.server
    if not server.tls_certificate:
        if server.tls_key:
            raise ConfigurationError("server.tls_key: it needs server.tls_certificate beside it")
        return None
    certificate = Path(server.tls_certificate).expanduser()
    key = Path(server.tls_key).expanduser() if server.tls_key else certificate
    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"server.{name}: {path}: {error.strerror}") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
    except (OSError, ValueError) as error:
        both = certificate if key == certificate else f"{certificate} with {key}"
        raise ConfigurationError(f"server.tls_certificate: {both}: {error}") from error
    return certificate, key


def is_loopback(host: str) -> bool:
    """True for an address of this machine alone; names other than `localhost` are not looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
