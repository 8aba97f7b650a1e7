"""Names of the loaded model for `/v1`: the public one, its id, `default`; each may end with `@` and a preset.

The id may be a path of this machine, which answers of `/v1` never hold.
"""

from __future__ import annotations

import os

from ..domain.events import GenerationStarted
from ..domain.refs import ModelFacts
from ..domain.state import ModelState
from ..errors import ModelNotFoundError, SAEError, from_code
from .answers import state_of
from .context import context
from .types import AnyRequest

DEFAULT = "default"


def public_name(request: AnyRequest, model_id: str) -> str:
    """`[model] name`, else the last part of the id."""
    return context(request).model_name or _last_part(model_id)


def _last_part(model_id: str) -> str:
    return model_id.rstrip("/").rpartition("/")[2] or model_id


def root_of(request: AnyRequest, facts: ModelFacts) -> str:
    """The id of a model of a hub; of one in a folder its public name."""
    return public_name(request, facts.model_id) if facts.commit is None else facts.model_id


def preset_named(request: AnyRequest, facts: ModelFacts, model: str) -> str | None:
    """The preset in `model`, which must name the loaded model; None without one. `ModelNotFoundError`."""
    own = public_name(request, facts.model_id)
    names = (own, facts.model_id, facts.model_id.strip("/"), DEFAULT)
    if model in names:
        return None
    base, at, preset = model.rpartition("@")
    if not at or base not in names:
        raise ModelNotFoundError(f"the loaded model is {own}, not {model[:200]}", param="model")
    if preset not in state_of(request).presets:
        raise ModelNotFoundError(f"there is no preset {preset[:80]}", param="model", preset=preset[:80])
    return preset


def shown_name(request: AnyRequest, facts: ModelFacts, started: GenerationStarted) -> str:
    """The model in an answer: a name under which the same request is answered in the same way."""
    preset = "" if started.preset is None else f"@{started.preset.name}"
    return f"{public_name(request, facts.model_id)}{preset}"


def without_paths(request: AnyRequest, error: SAEError) -> SAEError:
    """The error with the model's public name in place of the folder that it is in."""
    model = state_of(request).model
    if model is None or not _is_path(model):
        return error
    home = os.path.expanduser(model.model)
    detail = error.detail
    for path in (os.path.abspath(home), home, model.model):
        if len(path) > 1 and "/" in path:
            detail = detail.replace(path.rstrip("/"), public_name(request, model.model))
    return error if detail == error.detail else from_code(error.code, detail, **error.fields)


def _is_path(model: ModelState) -> bool:
    """Of one that is not loaded, by its looks."""
    return model.facts.commit is None if model.facts is not None else model.model.startswith(("/", "~", "."))
