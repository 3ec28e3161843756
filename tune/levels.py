"""The levels of a sweep: how many artificial people, or generated pictures of each real person, beside the real ones.

Levels are nested inside a seed: what level 10 has is a part of what level 20 has (datasets/reid/draws.py).
"""

import dataclasses
import re
from collections.abc import Iterable

from passersby.errors import InputError

PEOPLE_SWEEP, VARIANTS_SWEEP = "artificial-people", "variants-of-real-people"
LEVELS = {
    PEOPLE_SWEEP: (*range(0, 101, 10), 150, 200, 250, 280, 300, 320),
    VARIANTS_SWEEP: (*range(0, 46, 5), 60, 70, 85, 105, 135),
}  # the original study's
_MOST = 9_999_999


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
    """One training and evaluation: a seed, a level, and the crossed options as "key=value, ...", "" without any."""

    seed: int
    level: int
    arm: str = ""

    @property
    def name(self) -> str:
        """Name of its folder: "level-0020-seed-1", with a crossed option "level-0020-seed-1-batch-32"."""
        option = re.sub(r"[^A-Za-z0-9.]+", "-", self.arm).strip("-")
        return f"level-{self.level:04d}-seed-{self.seed}" + (f"-{option}" if option else "")


def checked(numbers: Iterable[int], option: str) -> tuple[int, ...]:
    """Levels or seeds, ascending. Raises InputError for none, one given twice, or one out of range."""
    numbers = tuple(numbers)
    if not numbers:
        raise InputError(f"{option}: give one number or more")
    for number in numbers:
        if not 0 <= number <= _MOST:
            raise InputError(f"{option} {number}: must be 0 to {_MOST}")
        if numbers.count(number) > 1:
            raise InputError(f"{option} {number} is given twice: give it once")
    return tuple(sorted(numbers))


def with_baseline(levels: Iterable[int]) -> tuple[int, ...]:
    """The levels, ascending, and level 0, to which all others are compared. Raises InputError as `checked` does."""
    levels = checked(levels, "--levels")
    return levels if levels[0] == 0 else (0, *levels)


def trials_of(levels: Iterable[int], seeds: Iterable[int], arms: Iterable[str]) -> list[Trial]:
    """Every level with every seed and every arm, the trials of a seed together. Raises InputError where two arms would
    have one folder."""
    levels, arms = tuple(levels), tuple(arms)
    trials = [Trial(seed, level, arm) for seed in seeds for level in levels for arm in arms]
    names: dict[str, Trial] = {}
    for trial in trials:
        other = names.setdefault(trial.name, trial)
        if other is not trial:
            raise InputError(
                f"--cross: {other.arm!r} and {trial.arm!r} would share the folder {trial.name}: leave one out"
            )
    return trials
