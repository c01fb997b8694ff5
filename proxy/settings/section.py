"""The base class of all settings sections, and value types that several sections use."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SerializationInfo, ValidationInfo

from proxy.settings.values import Duration

_DAY: Final = 86400.0
BOOT: Final = "boot"
"""Key of the serialisation context for JSON with secrets: its value is ``AUTHORITY`` or ``WORKERS``."""
AUTHORITY: Final = "authority"
WORKERS: Final = "workers"


class Section(BaseModel):
    """The base of all sections: frozen, and unknown names are errors."""

    # Deferred, because only the validator of ``Settings`` is used, which includes those of its sections.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


def _not_empty(value: object) -> object:
    if value == "" or (isinstance(value, str) and "\0" in value):
        raise ValueError("must be a file path")
    return value


def _absolute(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return path if base is None else Path(base) / path


FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_absolute)]
Timeout = Annotated[Duration, Field(gt=0.0, le=7 * _DAY)]


def reaches_authority(info: SerializationInfo) -> bool:
    """Whether this JSON is for the authority, which gets the secrets of the store and of notices."""
    return bool(isinstance(info.context, dict) and info.context.get(BOOT) == AUTHORITY)


def reaches_workers(info: SerializationInfo) -> bool:
    """Whether this JSON is for gateway workers, which get the values of headers for backends and no other secret."""
    return bool(isinstance(info.context, dict) and info.context.get(BOOT) == WORKERS)
