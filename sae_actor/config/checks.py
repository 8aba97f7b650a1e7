"""What of the settings is checked before a start: tokens, exposure, certificates."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import ssl
import stat
from collections.abc import Iterable
from pathlib import Path

from .access import Access, Grant, operator, read_line
from .settings import ConfigurationError, Settings

MAX_TOKENS_FILE = 64 * 1024


def grants(settings: Settings) -> tuple[Grant, ...]:
    """Everyone who holds a token: `[server] token`, `tokens` and the lines of `tokens_file`.

    Raises `ConfigurationError`, also for a file that others than its owner may read or write.
    """
    server = settings.server
    lines = [(f"server.tokens: entry {number}", line) for number, line in enumerate(server.tokens, 1)]
    if server.tokens_file:
        named = _lines(server.tokens_file, _private_text(Path(server.tokens_file).expanduser()))
        if not named:
            raise ConfigurationError(f"server.tokens_file: {server.tokens_file} does not hold a token")
        lines += named
    return _read([operator(server.token)] if server.token else [], lines)


def _lines(name: object, text: str) -> list[tuple[str, str]]:
    """The lines of a tokens file, each with where it stands."""
    return [
        (f"{name}: line {number}", line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _read(found: list[Grant], lines: Iterable[tuple[str, str]]) -> tuple[Grant, ...]:
    for where, line in lines:
        try:
            found.append(read_line(line))
        except ValueError as error:
            raise ConfigurationError(f"{where}: {error}") from None
    try:
        return Access(found).grants
    except ValueError as error:
        raise ConfigurationError(f"server.tokens: {error}") from None


def add_line(path: Path, line: str) -> None:
    """Put a line at the end of a tokens file, which is made if it is missing: then, as ever, for its owner alone.
    Raises `ConfigurationError`, with nothing written, if the file could not be used with it."""
    try:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b", buffering=0) as file:
            # Another one that adds waits; a service that reads finds the file before or after it.
            fcntl.flock(file, fcntl.LOCK_EX)
            before = _private_text(path)
            text = before if not before or before.endswith("\n") else f"{before}\n"
            if len(f"{text}{line}\n".encode()) > MAX_TOKENS_FILE:
                raise ConfigurationError(f"{path}: it would be larger than {MAX_TOKENS_FILE} bytes")
            _read([], _lines(path, f"{text}{line}\n"))
            file.write(f"{text[len(before) :]}{line}\n".encode())
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error


def _private_text(path: Path) -> str:
    """A file that only its owner may read and write."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                raise ConfigurationError(
                    f"server.tokens_file: {path} is accessible to others than its owner; chmod 600 it"
                )
            raw = file.read(MAX_TOKENS_FILE + 1)
        if len(raw) > MAX_TOKENS_FILE:
            raise ConfigurationError(f"server.tokens_file: {path} is larger than {MAX_TOKENS_FILE} bytes")
        return raw.decode()
    except OSError as error:
        raise ConfigurationError(f"server.tokens_file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"server.tokens_file: {path}: not UTF-8") from error


def check_exposure(settings: Settings) -> Access:
    """Who holds a token. Whoever reaches the port commands the service, so only a token opens it beyond this machine.

    Raises `ConfigurationError`, also for a trusted proxy that is not an address.
    """
    access = Access(grants(settings))
    if not access and not is_loopback(settings.server.host):
        raise ConfigurationError(
            f"server.host: {settings.server.host} is reachable from other machines, and no token is set: "
            "set SAE_ACTOR_SERVER_TOKEN or SAE_ACTOR_SERVER_TOKENS_FILE, or listen on 127.0.0.1"
        )
    for proxy in settings.server.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise ConfigurationError(f"server.trusted_proxies: {error}") from None
    return access


def tls_files(settings: Settings) -> tuple[Path, Path] | None:
    """Certificate and key, or None for HTTP without TLS.

    Both are read once here: `ConfigurationError` if they do not match or need a pass phrase.
    """
    server = settings.server
    if not server.tls_certificate:
        if server.tls_key:
            raise ConfigurationError("server.tls_key: it requires server.tls_certificate")
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
