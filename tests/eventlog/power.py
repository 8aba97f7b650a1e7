"""Power loss, simulated: what a disk may hold when every write that was not synced is lost, or some of it is not.

A real process runs under `strace`; its writes, syncs, renames and answers become a list. `Disk.after` cuts the power
behind any of them. A write is durable once a sync of its file that began after it has ended; a name once its folder
was synced. What is not durable is there or gone, each write by chance, names in their order.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.eventlog.making import REPOSITORY

CALLS = "openat,write,pwrite64,fdatasync,fsync,ftruncate,rename,unlink,close,dup,dup2,mkdir"
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)")
_UNFINISHED = re.compile(r"^(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^<\.\.\. \w+ resumed>(.*)$")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass
class Step:
    """One thing that happened to the folder, or an answer of the process."""

    kind: str
    """write, truncate, sync, create, rename, unlink, folder_sync, answer."""
    file: int = 0
    """Which file: a number of its own, whatever it is called."""
    at: int = 0
    data: bytes = b""
    name: str = ""
    to: str = ""
    began: int = 0
    """Of a sync: the number of steps before it began."""


def trace(folder: Path, module: str, *arguments: str) -> list[Step]:
    """Run a module of the tests on the folder, to its end; raises `OSError` where the machine allows no strace."""
    output = folder.with_name(f"{folder.name}.strace")
    command = ["strace", "-f", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-o", str(output), sys.executable, "-m"]
    answer = subprocess.run(
        [*command, module, str(folder), *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if "ptrace" in answer.stderr or not output.exists():
        raise OSError(answer.stderr)
    assert answer.returncode == 0, answer.stderr
    return _Reading(folder).steps_of(output)


@dataclass
class _Reading:
    folder: Path
    steps: list[Step] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)
    """Descriptor → file; the folder itself is −1."""
    offsets: dict[int, int] = field(default_factory=dict)
    made: int = 0

    def steps_of(self, output: Path) -> list[Step]:
        begun: dict[str, tuple[str, int]] = {}
        for line in output.read_text().splitlines():
            pid, _, rest = line.partition(" ")
            rest, began = rest.strip(), len(self.steps)
            if unfinished := _UNFINISHED.match(rest):
                begun[pid] = (unfinished[1], began)
                continue
            if resumed := _RESUMED.match(rest):
                start, began = begun.pop(pid)
                rest = start + resumed[1]
            if (call := _CALL.match(rest)) and int(call[3]) >= 0:
                self.take(call[1], call[2], int(call[3]), began)
        return self.steps

    def take(self, call: str, arguments: str, result: int, began: int) -> None:
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _STRING.findall(arguments)]
        first = arguments.partition(",")[0]
        fd = int(first) if first.isdigit() else -1
        match call:
            case "openat":
                self.opened(Path(texts[0].decode()), arguments, result)
            case "close":
                self.open.pop(fd, None)
            case "write" if fd == 1:
                self.steps.append(Step("answer", data=texts[0]))
            case "pwrite64" if fd in self.open:
                at = int(arguments.rsplit(",", 1)[1])
                self.steps.append(Step("write", self.open[fd], at, texts[0][:result]))
            case "write" if fd in self.open:
                at = self.offsets.get(fd, 0)
                self.offsets[fd] = at + result
                self.steps.append(Step("write", self.open[fd], at, texts[0][:result]))
            case "ftruncate" if fd in self.open:
                self.steps.append(Step("truncate", self.open[fd], int(arguments.rsplit(",", 1)[1])))
            case "fsync" | "fdatasync" if fd in self.open:
                kind = "folder_sync" if self.open[fd] == -1 else "sync"
                self.steps.append(Step(kind, self.open[fd], began=began))
            case "rename":
                old, new = (Path(text.decode()).name for text in texts)
                self.names[new] = self.names.pop(old)
                self.steps.append(Step("rename", self.names[new], name=old, to=new))
            case "unlink" if Path(texts[0].decode()).parent == self.folder:
                name = Path(texts[0].decode()).name
                self.steps.append(Step("unlink", self.names.pop(name), name=name))
            case "dup" | "dup2":
                assert fd not in self.open, "the model knows no second descriptor of a file"

    def opened(self, path: Path, arguments: str, fd: int) -> None:
        if path == self.folder:
            self.open[fd] = -1
        elif path.parent == self.folder:
            if path.name not in self.names:
                assert "O_CREAT" in arguments
                self.made += 1
                self.names[path.name] = self.made
                self.steps.append(Step("create", self.made, name=path.name))
            elif "O_TRUNC" in arguments:
                self.steps.append(Step("truncate", self.names[path.name], 0))
            self.open[fd] = self.names[path.name]
            self.offsets.pop(fd, None)


def answers(steps: list[Step]) -> dict[int, str]:
    """Position → hash of every event that was acknowledged in these steps."""
    printed = b"".join(step.data for step in steps if step.kind == "answer").decode()
    lines = [line.split() for line in printed.splitlines(keepends=True) if line.endswith("\n")]
    return {int(position): digest for position, digest in lines}


def after_power_loss(steps: list[Step], folder: Path, chance: random.Random) -> None:
    """Make the folder as it may be found when the power went behind the last of these steps."""
    mercy = chance.choice([0.0, 0.0, 0.3, 0.7, 1.0])
    synced: dict[int, int] = {}
    named = 0
    for step in steps:
        if step.kind == "sync":
            synced[step.file] = max(synced.get(step.file, 0), step.began)
        elif step.kind == "folder_sync":
            named = max(named, step.began)
    contents: dict[int, bytearray] = {}
    names: dict[str, int] = {}
    kept = True
    for number, step in enumerate(steps):
        content = contents.setdefault(step.file, bytearray())
        durable = number < synced.get(step.file, 0) or chance.random() < mercy
        if step.kind in ("create", "rename", "unlink"):
            # Names change in order: one that is lost takes those after it along.
            kept = kept and (number < named or chance.random() < mercy)
            if kept:
                if step.kind == "create":
                    names[step.name] = step.file
                elif step.kind == "unlink":
                    names.pop(step.name, None)
                else:
                    names[step.to] = names.pop(step.name)
        elif step.kind == "truncate" and durable:
            del content[step.at :]
            content.extend(b"\0" * (step.at - len(content)))
        elif step.kind == "write" and durable:
            content.extend(b"\0" * (step.at + len(step.data) - len(content)))
            content[step.at : step.at + len(step.data)] = step.data
    folder.mkdir()
    for name, file in names.items():
        (folder / name).write_bytes(contents[file])
