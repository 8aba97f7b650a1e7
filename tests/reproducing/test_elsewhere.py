"""`log reproduce --model --sae`: on another machine, with the same files under other paths."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import anyio
import pytest

from sae_actor.domain.refs import SaeFile, Span
from sae_actor.domain.state import SaeLocation
from sae_actor.errors import SAEInvalidError
from sae_actor.eventlog import export_bundle, import_bundle
from sae_actor.hub import HuggingFaceHub
from sae_actor.reproducing.local_saes import LocalSaes
from sae_actor.sae import load_sae
from tests.engine.tiny import save_tiny_model, save_tiny_sae
from tests.reproducing.conftest import Log, OfHub, Reproduce
from tests.reproducing.making import GREEDY, SAMPLED, edit, recording


@pytest.fixture
def moved(log: Log, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The log from a bundle alone, and the files under other names: what the log names is not there."""
    folder = tmp_path / "machine" / "data"

    async def carry() -> None:
        await export_bundle(log.folder, tmp_path / "bundle.tar")
        await import_bundle(tmp_path / "bundle.tar", folder)

    anyio.run(carry)
    model = shutil.copytree(log.model, tmp_path / "machine" / "a model")
    sae = shutil.copytree(log.sae, tmp_path / "machine" / "an sae")
    return folder, model, sae


@pytest.fixture
def gone(log: Log, tmp_path: Path) -> object:
    """Model and SAEs are not where the log says, while a test runs."""
    kept = {
        path: path.rename(tmp_path / f"gone {path.name}") for path in (log.model, log.sae, log.sae.parent / "other")
    }
    yield kept
    for path, there in kept.items():
        there.rename(path)


def test_every_text_is_identical_with_the_files_under_other_paths(
    log: Log, moved: tuple[Path, Path, Path], gone: dict[Path, Path], reproduce: Reproduce
) -> None:
    folder, model, sae = moved
    other = gone[log.sae.parent / "other"]
    argv = ("--model", str(model), "--sae", str(other), "--sae", str(sae))
    code, views = reproduce(folder, "--all", *argv)
    assert {view["generation_id"]: view["verdict"] for view in views} == dict.fromkeys(log.texts.values(), "identical")
    assert code == 0
    assert all(view["environment"]["differs"] == [] for view in views)
    code, (view,) = reproduce(
        folder, log.texts["greedy"], "--model", str(model), "--sae", str(sae / "sae_weights.safetensors")
    )
    assert (code, view["verdict"]) == (0, "identical")


def test_other_files_are_refused_by_their_digests(
    log: Log, moved: tuple[Path, Path, Path], tmp_path: Path, reproduce: Reproduce
) -> None:
    folder, model, sae = moved
    other_model = save_tiny_model(tmp_path / "other model", seed=4)
    other_sae = save_tiny_sae(tmp_path / "other sae", seed=9)
    for argv, reason in (
        (("--model", str(other_model), "--sae", str(sae)), "not the ones it was loaded from: model.safetensors"),
        (("--model", str(tmp_path / "none"), "--sae", str(sae)), f"there is no model in {tmp_path / 'none'}"),
        (("--model", str(model), "--sae", str(other_sae)), "sae_weights.safetensors has changed)"),
        (("--model", str(model), "--sae", str(tmp_path)), "is gone)"),
    ):
        code, (view,) = reproduce(folder, log.texts["greedy"], *argv)
        assert (code, view["verdict"]) == (69, "not_comparable")
        assert view["reason"].endswith(reason), view["reason"]


def test_a_model_that_was_of_the_hub(log: Log, of_hub: OfHub, reproduce: Reproduce) -> None:
    """Its commit is not known of a folder; the files are the same all the same."""
    shutil.rmtree(of_hub.repository)
    code, (view,) = reproduce(of_hub.folder, of_hub.text, "--model", str(log.model))
    assert (code, view["verdict"], view["environment"]["differs"]) == (0, "identical", [])


def recorded(root: Path, *names: str, converted_from: str | None = None) -> tuple[SaeFile, ...]:
    """The files as a download has them on record."""
    contents = {name: (root / name).read_bytes() for name in names}
    return tuple(
        SaeFile(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), converted_from=converted_from)
        for name, data in contents.items()
    )


def test_an_sae_of_a_repository_in_its_own_folder_or_in_one_like_the_repository(tmp_path: Path) -> None:
    """And what was made of a pickle, in a copy of the folder where the service keeps it."""
    repository = tmp_path / "repository"
    inner = save_tiny_sae(repository / "layers" / "one")
    files = recorded(repository, "layers/one/cfg.json", "layers/one/sae_weights.safetensors")
    location = SaeLocation(source="hub", repository_id="org/saes", commit="a" * 40, path="layers/one", files=files)
    of_pickle = recorded(inner, "sae_weights.safetensors", converted_from="ae.pt")
    pickle = SaeFile(path="ae.pt", bytes=1, sha256="f" * 64)
    made = SaeLocation(
        source="hub", repository_id="org/saes", commit="a" * 40, path=None,
        files=(pickle, *recorded(inner, "cfg.json"), *of_pickle),
    )  # fmt: skip
    hub = HuggingFaceHub(tmp_path / "hub")

    async def look() -> None:
        of_hub = [(path, location) for path in (inner, repository, repository / "layers")]
        for where, found in (*of_hub, (inner, made), (inner / "sae_weights.safetensors", made)):
            here, path = await LocalSaes([tmp_path, where], hub).locate(found)
            assert here.source == "import"
            assert load_sae(Path(path), repository_id="org/saes").spec == load_sae(inner, repository_id="org/saes").spec
        with pytest.raises(SAEInvalidError):
            await LocalSaes([tmp_path, repository], hub).locate(made)
        await hub.close()

    anyio.run(look)


@pytest.mark.model
@pytest.mark.timeout(300)
def test_twenty_texts_of_the_demo(real_model: Path, demo_sae: Path, tmp_path: Path, reproduce: Reproduce) -> None:
    """Of the real model, with the bundled SAE in every manner: identical from the bundle and copies of the files."""
    prompts = ("The sun", "Tell me about the sea", "A list of colours:", "def main():", "Once upon a time")
    sae = shutil.copytree(demo_sae, tmp_path / "demo sae")

    async def live() -> None:
        async with recording(tmp_path / "log", real_model) as service:
            sae_id = await service.attach(sae)
            for at, prompt in enumerate(prompts):
                await service.steer(sae_id, edit(584, 85.0 - 40 * at, exclude=("sink",)))
                await service.say(prompt, GREEDY)
                await service.say(prompt, SAMPLED)
                await service.say(prompt, SAMPLED, steering=(edit(584, 0.0, method="scale", positions=Span(from_=1)),))
                await service.say(prompt, GREEDY, baseline=True)
        await export_bundle(tmp_path / "log", tmp_path / "bundle")
        await import_bundle(tmp_path / "bundle", tmp_path / "elsewhere")

    anyio.run(live)
    sae.rename(tmp_path / "moved sae")
    (tmp_path / "moved model").symlink_to(real_model)
    paths = ("--model", str(tmp_path / "moved model"), "--sae", str(tmp_path / "moved sae"))
    code, views = reproduce(tmp_path / "elsewhere", "--all", *paths)
    assert [view["verdict"] for view in views] == ["identical"] * 20
    assert code == 0
    assert all(view["environment"]["same"] for view in views)
