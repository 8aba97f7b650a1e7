"""Every command in every situation: what follows, or the code it is refused with."""

from __future__ import annotations

import pytest

from sae_actor.domain import events as ev
from sae_actor.domain.commands import (
    AnyCommand,
    Attach,
    CancelDownload,
    Delete,
    DeletePreset,
    Detach,
    Download,
    Import,
    LoadModel,
    Monitor,
    RequestedIntervention,
    SavePreset,
    Steer,
    UnloadModel,
)
from tests.domain.dsl import (
    BROKEN,
    DIED,
    FOLDER,
    MODEL,
    REPOSITORY,
    STARTED,
    A,
    Story,
    attached,
    attaching,
    cached,
    downloading,
    given,
    loaded,
    loading,
    lost,
    restored,
)

READY = (STARTED, loaded(), cached())  # 1, 2–3, 4–5

SITUATIONS: dict[str, Story] = {
    "empty": given(STARTED),
    "no_model": given(STARTED, cached()),
    "model_loading": given(STARTED, cached(), loading()),
    "downloading": given(STARTED, loaded(), downloading()),
    "again": given(*READY, downloading(force=True)),
    "not_downloaded": given(
        STARTED, loaded(), downloading(), ev.DownloadFailed(request_position=4, sae_id=A, error=BROKEN)
    ),
    "ready": given(*READY),
    "attaching": given(*READY, attaching()),
    "attached": given(*READY, attached()),
    "moving": given(*READY, attached(), attaching(layer=2, replaces=(A,))),
    "detaching": given(*READY, attached(), ev.DetachRequested(sae_id=A)),
    "deleting": given(*READY, ev.DeleteRequested(sae_id=A)),
    "restoring": given(*READY, attached(), DIED),
    "lost": given(*READY, attached(), DIED, restored(2), lost(A, 6)),
    "model_lost": given(
        *READY,
        attached(),
        DIED,
        ev.ModelLoadFailed(request_position=2, error=BROKEN, restored=True),
        lost(A, 6),
    ),
}

COMMANDS: dict[str, AnyCommand] = {
    "load": LoadModel(model=MODEL),
    "other": LoadModel(model="org/other"),
    "unload": UnloadModel(),
    "download": Download(repository_id=REPOSITORY, path="a"),
    "force": Download(repository_id=REPOSITORY, path="a", force=True),
    "cancel": CancelDownload(sae_id=A),
    "attach": Attach(sae_id=A),
    "replace": Attach(sae_id=A, layer=2, replace=True),
    "detach": Detach(sae_id=A),
    "delete": Delete(sae_id=A),
    "steer": Steer(sae_id=A, features=()),
    "monitor": Monitor(sae_id=A, enabled=True),
    "save": SavePreset(name="calm", interventions=(RequestedIntervention(A),)),
    "forget": DeletePreset(name="calm"),
}

WORDS = {
    "load": "ModelLoadRequested",
    "loaded": "ModelLoadRequested ModelLoaded",
    "turn": "ModelLoadRequested ModelLoadFailed",
    "unload": "ModelUnloaded",
    "stop": "ModelUnloaded ModelLoadFailed",
    "fetch": "DownloadRequested",
    "reuse": "DownloadRequested DownloadCompleted",
    "cancel": "DownloadCancelled",
    "attach": "AttachRequested",
    "detach": "DetachRequested",
    "break": "DetachRequested AttachFailed",
    "out": "DetachRequested SaeDetached",
    "delete": "DeleteRequested",
    "steer": "SteeringChanged",
    "watch": "MonitoringChanged",
    "save": "PresetSaved",
    "-preset": "preset_not_found",
    "-model": "model_not_loaded",
    "-known": "sae_not_found",
    "-on": "sae_not_attached",
    "-twice": "sae_already_attached",
    "-used": "sae_in_use",
    "-idle": "sae_not_downloading",
    "-whole": "sae_invalid",
}
"""What the table says: the events that follow, or (with a dash) the code of the refusal."""

TABLE = """
               load   other unload download force cancel attach replace detach delete steer  monitor save   forget
empty          load   load  -model fetch    fetch -known -known -known  -known -known -known -known  -known -preset
no_model       load   load  -model reuse    fetch -idle  -model -model  -on    delete -on    -on     save   -preset
model_loading  load   turn  stop   reuse    fetch -idle  -model -model  -on    delete -on    -on     save   -preset
downloading    loaded load  unload fetch    fetch cancel -used  -used   -on    -used  -on    -on     -used  -preset
again          loaded load  unload fetch    fetch cancel -used  -used   -on    -used  -on    -on     -used  -preset
not_downloaded loaded load  unload fetch    fetch -idle  -whole -whole  -on    delete -on    -on     -whole -preset
ready          loaded load  unload reuse    fetch -idle  attach attach  -on    delete -on    -on     save   -preset
attaching      loaded -used -used  reuse    -used -idle  -twice -used   break  -used  -on    -on     save   -preset
attached       loaded -used -used  reuse    fetch -idle  -twice attach  detach -used  steer  watch   save   -preset
moving         loaded -used -used  reuse    -used -idle  -twice -used   break  -used  steer  watch   save   -preset
detaching      loaded -used -used  reuse    -used -idle  -twice -used   -on    -used  -on    -on     save   -preset
deleting       loaded load  unload -used    -used -idle  -used  -used   -on    -used  -on    -on     -used  -preset
restoring      load   -used -used  reuse    -used -idle  -model -model  detach -used  -on    -on     save   -preset
lost           loaded load  unload reuse    fetch -idle  attach attach  out    delete -on    -on     save   -preset
model_lost     load   load  unload reuse    fetch -idle  -model -model  out    delete -on    -on     save   -preset
"""
HEAD, *ROWS = (line.split() for line in TABLE.strip().splitlines())
EXPECTED = {row[0]: dict(zip(HEAD, (WORDS[word] for word in row[1:]), strict=True)) for row in ROWS}


def test_the_table_is_whole() -> None:
    assert list(EXPECTED) == list(SITUATIONS)
    assert list(COMMANDS) == HEAD


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_follows(situation: str, command: str) -> None:
    expected = EXPECTED[situation][command]
    story = SITUATIONS[situation].when(COMMANDS[command])
    if expected[0].islower():
        story.refused(expected)
    else:
        story.then_types(*(ev.PAYLOADS[name] for name in expected.split()))
        assert isinstance(story.newest[0], ev.Intent), "the first event of an accepted command is its intent"


@pytest.mark.parametrize("situation", SITUATIONS)
def test_an_import_depends_on_no_other_sae(situation: str) -> None:
    SITUATIONS[situation].when(Import(path=FOLDER)).then_types(ev.DownloadRequested)
