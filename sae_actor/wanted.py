"""The model that the settings ask for, beside the one that the log has."""

from __future__ import annotations

from .config import ConfigurationError, Settings
from .domain.commands import LoadModel
from .domain.state import ModelState, State


def asked_for(settings: Settings) -> LoadModel | None:
    """The model that is to be there, if any."""
    model = settings.model
    if not model.id:
        return None
    return LoadModel(model=model.id, revision=model.revision, dtype=model.dtype, device=model.device)


def same(there: ModelState, wanted: LoadModel) -> bool:
    """Whether what is there is as it is wanted: model, revision, dtype and device. Of the last three a default is no
    wish: what a command asked for stays."""
    plain = LoadModel(model=wanted.model)
    return (
        all(
            wish in (own, default)
            for own, wish, default in zip(_fields(there), _fields(wanted), _fields(plain), strict=True)
            if own != wish
        )
        and there.model == wanted.model
    )


def check_model(settings: Settings, state: State) -> None:
    """`ConfigurationError` where another one is asked for than the log's, and that one has an SAE attached."""
    wanted, there = asked_for(settings), state.model
    if wanted is None or there is None or not state.attachments or same(there, wanted):
        return
    raise ConfigurationError(
        f"the settings ask for {_in_words(wanted)}, the log has {_in_words(there)} with "
        f"{state.attachments[0].sae_id} attached; detach it first, or start without --model ([model] id)"
    )


def _fields(model: ModelState | LoadModel) -> tuple[str, str, str, str]:
    return (model.model, model.revision, model.dtype, model.device)


def _in_words(model: ModelState | LoadModel) -> str:
    return f"{model.model} (revision {model.revision}, dtype {model.dtype}, device {model.device})"
