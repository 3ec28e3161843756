"""Common parts of all training configurations: their JSON, their values in a record, checks of their numbers."""

import dataclasses
import typing
from pathlib import Path
from typing import Any, ClassVar, Self

from passersby.options import require

# Options that may change when any training continues: how often it writes, its folders and its machines. An option
# that changes the learning is never among them.
ALWAYS_FREE = frozenset(
    ["preset", "data", "out", "max_minutes", "checkpoint_minutes", "status_seconds", "workers", "gpus", "threads"]
    + ["restarts", "tf32"]
)


class TrainingConfig:
    """Base of the frozen dataclasses that configure a training. The base has no options, so that each dataclass can
    put its options in a readable order."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    # Options that each of these dataclasses has.
    if typing.TYPE_CHECKING:
        data: Path
        out: Path
        batch: int
        workers: int
        gpus: int | None
        threads: int | None
        restarts: int
        tf32: bool
        checkpoint_minutes: float
        max_minutes: float | None
        status_seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON: paths are text, tuples lists; `from_json` reads them back."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The configuration that `as_json` wrote."""
        hints = typing.get_type_hints(cls)
        return cls(**{name: _typed(value, hints.get(name)) for name, value in values.items()})

    def as_record(self) -> dict[str, Any]:
        """Plain values for JSON, with only the last part of each path: records must not name this machine's folders."""
        return {field.name: _plain(getattr(self, field.name), names=True) for field in dataclasses.fields(self)}

    def check_workers(self) -> int:
        """Each worker's images of a step. Raises InputError where workers cannot share batch or GPUs equally."""
        share, rest = divmod(self.batch, max(self.workers, 1))
        require(rest == 0, f"--batch {self.batch} cannot be split over --workers {self.workers}: take a multiple")
        require(
            self.gpus in (None, 0, max(self.workers, 1)),
            f"--gpus {self.gpus} with --workers {self.workers}: give 0 or one GPU a worker",
        )
        return share


def _plain(value: Any, names: bool = False) -> Any:
    if isinstance(value, Path):
        return value.name if names else str(value)
    return [_plain(item, names) for item in value] if isinstance(value, tuple) else value


def _typed(value: Any, hint: Any) -> Any:
    """A value of JSON as a field of this type has it."""
    paths = Path in (hint, *typing.get_args(hint))
    if isinstance(value, list):
        return tuple(Path(item) if paths else item for item in value)
    return Path(value) if paths and value is not None else value
