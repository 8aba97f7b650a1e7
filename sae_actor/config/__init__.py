"""Settings: flags over environment over file over the built-in values, which are those of `config.toml`.

settings      `Settings`, its sections and keys
loading       `load`: from flags, environment and file
checks        what is checked before a start: tokens, exposure, certificates
folders       where data lies
deployment    `resolve`: what the settings come to on this machine
access        names, roles and digests of tokens
variables     names of environment variables, and suggestions for wrong ones
admissible    what a value of a type may be, in words
"""

from .checks import check_exposure, is_loopback, tls_files
from .deployment import Deployment, resolve
from .folders import data_folder
from .loading import load, strangers
from .settings import ConfigurationError, FlagError, LogFormat, LogLevel, Settings
