"""Settings: flags over environment over file over the built-in values, which are those of `config.toml`.

settings      `Settings`, its sections and keys
loading       `load`: from flags, environment and file
checks        what is checked before a start: tokens, exposure, certificates
folders       where data lies
access        names, roles and digests of tokens
variables     names of environment variables, and suggestions for wrong ones
admissible    what a value of a type may be, in words
"""

from .checks import check_exposure, grants, is_loopback, tls_files
from .folders import data_folder, demo_model_folder
from .loading import load, strangers
from .settings import ConfigurationError, FlagError, LogFormat, LogLevel, Settings

__all__ = [
    "ConfigurationError",
    "FlagError",
    "LogFormat",
    "LogLevel",
    "Settings",
    "check_exposure",
    "data_folder",
    "demo_model_folder",
    "grants",
    "is_loopback",
    "load",
    "strangers",
    "tls_files",
]
