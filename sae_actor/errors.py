"""Every error a user can meet, one class per code.

Each class names its `code` and the HTTP `status` it is answered with; the message is the problem's
`detail`, and keyword arguments become further fields of the problem (`sae_d_in`, `model_d`, …).
`LogError` and those below it end a start of the service: no HTTP answer, but an exit code.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SAEError(Exception):
    """The root. `str(error)` is the `detail`; `error.fields` are the problem's further fields."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retry_after: ClassVar[int | None] = None
    """In how many seconds it is worth trying again, unless the field of that name says it."""

    def __init__(self, detail: str = "", **fields: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.fields = fields if self.retry_after is None else {"retry_after": self.retry_after, **fields}


class SAENotFoundError(SAEError):
    code, status, title = "sae_not_found", 404, "No such SAE"


class SAEIncompatibleError(SAEError):
    code, status, title = "sae_incompatible", 422, "The SAE does not fit the model"


class SAEAlreadyAttachedError(SAEError):
    code, status, title = "sae_already_attached", 409, "An SAE is already attached"


class SAENotAttachedError(SAEError):
    code, status, title = "sae_not_attached", 409, "The SAE is not attached"


class SAEInUseError(SAEError):
    code, status, title = "sae_in_use", 409, "The SAE is in use"


class SAENotDownloadingError(SAEError):
    code, status, title = "sae_not_downloading", 409, "The SAE is not being downloaded"


class SAEAmbiguousError(SAEError):
    code, status, title = "sae_ambiguous", 422, "The SAE is ambiguous"


class SAEInvalidError(SAEError):
    """The files of the SAE are damaged or contradict each other; `check` names the test that failed."""

    code, status, title = "sae_invalid", 422, "The SAE's files are not valid"


class SAEUnsupportedError(SAEError):
    """The files are sound, but of a kind that is refused by name."""

    code, status, title = "sae_unsupported", 422, "This kind of SAE is not supported"


class SAEDownloadError(SAEError):
    code, status, title = "sae_download_failed", 502, "The download failed"


class RepositoryNotFoundError(SAEDownloadError):
    code, status, title = (
        "not_found_or_private",
        404,
        "The hub has no such repository, revision or path, or it is private",
    )


class GatedError(SAEDownloadError):
    code, status, title = "gated", 403, "The repository is gated"


class DiskFullError(SAEDownloadError):
    code, status, title = "disk_full", 507, "The disk is full"


class FeatureOutOfRangeError(SAEError):
    code, status, title = "feature_out_of_range", 422, "The SAE has no such feature"


class ConflictingEditsError(SAEError):
    code, status, title = "conflicting_edits", 422, "Two edits contradict each other"


class LayerOutOfRangeError(SAEError):
    code, status, title = "layer_out_of_range", 422, "The model has no such layer"


class PositionsUnknownError(SAEError):
    """An edit is for positions that the model's chat template does not reveal."""

    code, status, title = "positions_unknown", 422, "The positions of the messages are unknown"


class RunNotFoundError(SAEError):
    code, status, title = "run_not_found", 404, "No such run"


class RunNotRunningError(SAEError):
    code, status, title = "run_not_running", 409, "The run has ended"


class TextsNotFoundError(SAEError):
    code, status, title = "texts_not_found", 404, "No such texts"


class ModelNotLoadedError(SAEError):
    code, status, title = "model_not_loaded", 409, "No model is loaded"


class ModelNotFoundError(SAEError):
    code, status, title = "model_not_found", 404, "No such model"


class ModelLoadError(SAEError):
    code, status, title = "model_load_failed", 422, "The model could not be loaded"


class OutOfMemoryError(SAEError):
    code, status, title = "out_of_memory", 507, "Not enough memory on the device"


class MailboxFullError(SAEError):
    code, status, title = "mailbox_full", 429, "Too many requests are waiting"


class QuotaExceededError(SAEError):
    """What the token's line in the tokens file allows is used up; another principal may have room."""

    code, status, title = "quota_exceeded", 429, "The quota is used up"


class TooManyAttemptsError(SAEError):
    code, status, title = "too_many_attempts", 429, "Too many failed logins"


class RequestTimeoutError(SAEError):
    code, status, title = "request_timeout", 408, "The request did not arrive in time"


class DeadlineExceededError(SAEError):
    code, status, title = "deadline_exceeded", 504, "The generation did not finish in time"


class NotReadyError(SAEError):
    code, status, title = "not_ready", 503, "The service is not ready"


class DrainingError(SAEError):
    """The service ends: what runs may finish, nothing new begins."""

    code, status, title = "draining", 503, "The service is being stopped"
    retry_after = 5


class ReadOnlyError(SAEError):
    """It takes a restart, by a person or a supervisor, until anything is recorded again."""

    code, status, title = "read_only", 503, "The service is read-only"
    retry_after = 60


class UnauthorizedError(SAEError):
    code, status, title = "unauthorized", 401, "A token is required"


class ForbiddenError(SAEError):
    code, status, title = "forbidden", 403, "Not allowed"


class BadRequestError(SAEError):
    code, status, title = "bad_request", 400, "The request is not valid"


class UnsupportedMediaTypeError(SAEError):
    code, status, title = "unsupported_media_type", 415, "This media type is not accepted"


class TooLargeError(SAEError):
    code, status, title = "too_large", 413, "The request is too large"


class IdempotencyKeyReusedError(SAEError):
    code, status, title = "idempotency_key_reused", 422, "The key was used for another command"


class AnswerGoneError(SAEError):
    """`generation_id` is the one that was made, which the log tells of."""

    code, status, title = "answer_gone", 409, "The answer is not kept any more"


class PresetNotFoundError(SAEError):
    code, status, title = "preset_not_found", 404, "No such preset"


class PreconditionFailedError(SAEError):
    code, status, title = "precondition_failed", 412, "The state has changed"


class NotFoundError(SAEError):
    code, status, title = "not_found", 404, "Not found"


class InternalError(SAEError):
    code, status, title = "internal", 500, "Internal error"


class DeviceLostError(InternalError):
    """A poisoned CUDA context cannot be repaired in the process; the service ends and starts anew."""

    title = "The device is lost"


class LogError(SAEError):
    """The event log cannot be opened; `exit_code` is what the process leaves with (sysexits)."""

    exit_code: ClassVar[int] = 70


class LogHeldError(LogError):
    exit_code = 75
    title = "Another process holds the log"


class LogDamagedError(LogError):
    """`first_bad` (keyword) is the first position that does not verify."""

    exit_code = 65
    title = "The log is damaged"


class LogUnusableError(LogError):
    """A log of another program, of a newer version, or one that cannot be written."""

    exit_code = 78
    title = "The log cannot be used"


class LogConflictError(LogError):
    title = "The head of the log is not where the writer expected it"


def _tree(cls: type[SAEError]) -> list[type[SAEError]]:
    return [cls, *(each for child in cls.__subclasses__() for each in _tree(child))]


BY_CODE: dict[str, type[SAEError]] = {
    cls.code: cls for cls in _tree(SAEError) if cls is not SAEError and not issubclass(cls, LogError | DeviceLostError)
}
"""code → class, to turn a problem of an event or an HTTP answer back into its error."""


def from_code(code: str, detail: str, **fields: Any) -> SAEError:
    """The error that `code` stands for; an unknown code becomes `InternalError`."""
    return BY_CODE.get(code, InternalError)(detail, **fields)
