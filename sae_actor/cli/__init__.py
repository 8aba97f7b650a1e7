"""`sae-actor`: one grammar, three kinds of commands.

main              runs one command; here an error becomes a message and an exit code
arguments         the grammar; wrong usage exits with 64 before any heavy import
values            its words as values
client_commands   clients of a running service: one function per command, over `sae_actor.client`
serve_commands    `serve` and `demo`: settings, then `sae_actor.service`
families          `families`: the model families, and the modules in the blocks of another model
tokens            `token NAME ROLE` makes a token and its line; `token list`: who holds one, from the settings
log_commands      `log …`: the audit, from the files of a data folder or from a running service
log_reproduce     `log reproduce`: runs generations again; the only command here that loads a model
log_bundles       `log import|redact`: make a log of an export, erase a payload
log_histories     `log diff --other`: where two histories of one log part
backup_commands   `backup`, `restore`: the data folder as one file, and back
sources/          where `log …` reads: a folder, or a service
render/           answers as text for a person
exit_codes        what each exit code means
"""

from .main import main
