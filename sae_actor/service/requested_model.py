"""The model of the settings, compared with the one of the log."""

from __future__ import annotations

from ..config import ConfigurationError, Settings
from ..domain.commands import LoadModel
from ..domain.state import ModelState, State
from ..models.files import CONFIG, is_hub_id, local_folder, local_path


def asked_for(settings: Settings) -> LoadModel | None:
    """The model that is to be there, if any."""
    model = settings.model
    if not model.id:
        return None
    return LoadModel(model=model.id, revision=model.revision, dtype=model.dtype, device=model.device)


def check_path(settings: Settings) -> None:
    """`ConfigurationError` for a path without a model; the hub checks what may be an id."""
    model = settings.model.id
    if not model or is_hub_id(model):
        return
    path = local_path(model)
    try:
        if local_folder(model) is not None:
            return
        there, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        raise ConfigurationError(f"model.id: {model} cannot be read: {error.strerror}") from None
    if is_folder:
        why = f"the folder {path.absolute()} is not a model: it has no {CONFIG}"
    else:
        why = f"{path.absolute()} is not a folder" if there else f"there is no folder {path.absolute()}"
    raise ConfigurationError(f"model.id: {why}. Give a folder with a model, or an id of the hub such as org/name")


def same(there: ModelState, wanted: LoadModel) -> bool:
    """Whether the log's model matches: id, revision, dtype and device. Defaults of the last three match anything: what
    a command chose stays."""
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
    """`ConfigurationError` if the settings name another model than the log's, and that one has an SAE attached."""
    wanted, there = asked_for(settings), state.model
    if wanted is None or there is None or not state.attachments or same(there, wanted):
        return
    raise ConfigurationError(
        f"the settings require {_in_words(wanted)}, the log has {_in_words(there)} with "
        f"{state.attachments[0].sae_id} attached; detach it first, or start without --model ([model] id)"
    )


def _fields(model: ModelState | LoadModel) -> tuple[str, str, str, str]:
    return (model.model, model.revision, model.dtype, model.device)


def _in_words(model: ModelState | LoadModel) -> str:
    return f"{model.model} (revision {model.revision}, dtype {model.dtype}, device {model.device})"
