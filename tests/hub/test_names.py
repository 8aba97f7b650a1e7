"""Row 41: which names of files, commits and sizes are let near the disk; digests and stamps."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_actor.domain.weights import weights_sha256
from sae_actor.errors import SAEDownloadError
from sae_actor.hub import layout
from sae_actor.hub.digests import BlobDigest, Stamp, feed


@pytest.mark.parametrize(
    "path", ["cfg.json", "a/b/c.npz", "v1..2/x", "a b=c,@+:d/e.json", "..a/b", "ünï/x", "-rf", "a/" + "n" * 255]
)
def test_names_of_real_repositories_pass(path: str) -> None:
    assert layout.check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", "./a", "a/.", "a//b", "a/", "a\\b", "a\0b", "a\nb",
        "a\x7fb", "a/" + "n" * 256, "n/" * 600, "\u202egpj.exe", "\ud800", 5, None,
    ],
)  # fmt: skip
def test_names_that_lead_out_or_hide_do_not(path: object) -> None:
    with pytest.raises(SAEDownloadError):
        layout.check_path(path)


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b c", "\\", "x" * 300, "\0", "…"]), max_size=6).map("/".join))
def test_a_name_that_passes_stays_below_its_folder(path: str) -> None:
    if layout.is_safe_path(path):
        assert os.path.normpath(f"/base/{path}") == f"/base/{path}"


@pytest.mark.parametrize("commit", [None, "", "main", "A" * 40, "a" * 39, "a" * 64, "../" + "a" * 37, "a" * 40 + "\n"])
def test_commits_are_forty_hex_digits(commit: object) -> None:
    with pytest.raises(SAEDownloadError):
        layout.check_commit(commit)


@pytest.mark.parametrize("size", [None, -1, 10**15, 2.0, "5", True])
def test_sizes_are_counts_of_bytes(size: object) -> None:
    with pytest.raises(SAEDownloadError):
        layout.check_size(size)


@pytest.mark.parametrize("revision", ["..", "a/../b", "-x", "a//b", "a b", "", "x" * 300, "a\nb"])
def test_revisions_are_names(revision: str) -> None:
    assert not layout.is_safe_revision(revision)


def test_repositories_have_the_folder_of_the_hubs_cache(tmp_path: Path) -> None:
    assert layout.Repository.of(tmp_path, "org/name").folder == tmp_path / "models--org--name"
    assert layout.Repository.of(tmp_path, "gpt2").folder == tmp_path / "models--gpt2"


def test_empty_folders_go_up_to_the_stop(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (tmp_path / "a" / "kept").touch()
    layout.remove_empty(deep, tmp_path)
    assert sorted(os.listdir(tmp_path / "a")) == ["kept"]
    layout.remove_empty(tmp_path / "a" / "gone" / "long", tmp_path)
    layout.remove_empty(tmp_path.parent, tmp_path)
    assert tmp_path.is_dir()


@given(st.binary(max_size=4000), st.integers(1, 700))
def test_digests_of_pieces_are_those_of_the_whole(data: bytes, piece: int) -> None:
    for git in (True, False):
        digest = BlobDigest(len(data), git=git)
        for at in range(0, len(data), piece):
            digest.update(data[at : at + piece])
        assert digest.sha256 == hashlib.sha256(data).hexdigest()
        wanted = hashlib.sha1(b"blob %d\0" % len(data) + data) if git else hashlib.sha256(data)
        assert digest.name == wanted.hexdigest()


def test_the_git_id_is_gits(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    digest = BlobDigest(6, git=True)
    with (tmp_path / "x").open("rb") as file:
        assert feed(digest, file.fileno()) == 6
    assert digest.name == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_the_digest_of_weights_depends_on_names_and_bytes_not_on_order() -> None:
    one, two = ("a", "1" * 64), ("b", "2" * 64)
    assert weights_sha256([one, two]) == weights_sha256([two, one])
    assert weights_sha256([one, two]) != weights_sha256([("a", "2" * 64), ("b", "1" * 64)])


def test_a_stamp_notices_a_write_that_hides_its_time(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    before, times = Stamp.of(path), path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Stamp.of(path) != before
