"""The plan of a run: its frozen configuration, and the fixed units that its people are divided into.

The plan has no randomness and does not depend on the cluster. A unit is the same slice of people on every
machine and at any time, so a file that exists never has to be made again.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence

from datasets.runs.configuration import Configuration, Origin
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.options import agree, check, check_known, differences, with_folder_values

PLAN_FILE = "plan.json"
NUM_WS = 16  # style inputs of a StyleGAN3 generator; a StyleGAN2 of height 64 has 10, of 128 12
POSE = "pose"  # the layers that a network's card names (datasets/runs/card.py)
MAX_UNITS = 1_000_000  # shards/NNN/unit-NNNNNN.parquet has three and six digits
UNIT_PIXEL_BYTES = 16_000_000  # the most raw pixels of a unit, even where --unit-images allows more
UNITS_OF_A_SMALL_RUN = 32  # small runs get smaller units, so that all workers get some and progress is visible


def layer_groups(num_ws: int = NUM_WS) -> dict[str, tuple[int, int]]:
    """The named groups of a network's style inputs: name -> first and last index.

    For 16 inputs they are the study's: coarse 0-5, middle 5-11, fine 12-15 (index 5 belongs to two of them). Networks
    with another number of inputs, which is 4 or more, have the same shares of them, rounded.
    """
    coarse, middle = round(5 * num_ws / 16), min(round(11 * num_ws / 16), num_ws - 2)
    return {"coarse": (0, coarse), "middle": (coarse, middle), "fine": (middle + 1, num_ws - 1), "all": (0, num_ws - 1)}


LAYER_GROUPS = layer_groups()  # of StyleGAN3, whose generators have 16 style inputs


def parse_layers(text: str, num_ws: int = NUM_WS) -> tuple[int, ...]:
    """The w indices, ascending, of a group name (coarse, middle, fine, all) or a list such as "3,5-8".

    num_ws: the network's style inputs, which decide what the groups are (`layer_groups`).
    Raises InputError for anything else than indices 0 to num_ws - 1, and for an empty list.
    """
    layers, groups = set(), layer_groups(num_ws)
    for part in (text if text not in groups else "{}-{}".format(*groups[text])).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            names = ", ".join([POSE, *groups])
            raise InputError(f"--layers {text!r}: give {names}, or w indices such as 3,5-8")
        low, high = int(first), int(last or first)
        if not low <= high < num_ws:
            raise InputError(f"--layers {text!r}: {part.strip()} is not within the w indices 0 to {num_ws - 1}")
        layers.update(range(low, high + 1))
    return tuple(sorted(layers))


def layers_text(layers: Sequence[int]) -> str:
    """Ascending w indices as `parse_layers` reads them, in the shortest form: [0, 1, 2, 5] is "0-2,5"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A fixed slice of the work: `people` whole persons from `first_person` on, which become one shard."""

    unit: int
    first_person: int
    people: int


@dataclasses.dataclass(frozen=True)
class Extent:
    """People added at one time, divided into equal units (the last may be smaller). Extents never change."""

    first_unit: int
    first_person: int
    people: int
    people_per_unit: int

    @property
    def units(self) -> int:
        """Number of units."""
        return math.ceil(self.people / self.people_per_unit)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration and the extents of people made with it; a few hundred bytes for any number of units."""

    configuration: Configuration
    extents: tuple[Extent, ...] = ()

    @property
    def hash(self) -> str:
        """sha256 of the configuration, which stands in every shard."""
        return self.configuration.hash

    @property
    def people(self) -> int:
        """Number of people in all."""
        return sum(extent.people for extent in self.extents)

    @property
    def images(self) -> int:
        """Number of images in all."""
        return self.people * self.configuration.variants

    @property
    def unit_count(self) -> int:
        """Number of units in all; units are 0 to unit_count - 1."""
        return sum(extent.units for extent in self.extents)

    def units(self) -> Iterator[Unit]:
        """Every unit, in order."""
        for extent in self.extents:
            for index in range(extent.units):
                first = index * extent.people_per_unit
                people = min(extent.people_per_unit, extent.people - first)
                yield Unit(extent.first_unit + index, extent.first_person + first, people)

    def extended(self, people: int) -> "Plan":
        """This plan with `people` people in all; the same plan when it has that many or more.

        Existing units do not change: the added people become a new extent. Raises InputError for less than
        one person, for a seed of 2^32 or more, for more real people than the latents table has, and for more
        units than file names can number.
        """
        configuration = self.configuration
        check("--people", people, people >= 1, "1 or more")
        if configuration.latents is not None and people > len(configuration.origins):
            raise InputError(f"--people {people}: --latents has {len(configuration.origins)} people")
        if configuration.latents is None and configuration.seed + people > 2**32:
            raise InputError(
                f"--people {people}: seeds end at 4294967295, so --seed {configuration.seed} leaves room for "
                f"{2**32 - configuration.seed} people"
            )
        added = people - self.people
        if added <= 0:
            return self
        images = min(configuration.unit_images, UNIT_PIXEL_BYTES // configuration.image_bytes)
        per_unit = max(1, min(images // configuration.variants, added // UNITS_OF_A_SMALL_RUN))
        extended = Plan(configuration, (*self.extents, Extent(self.unit_count, self.people, added, per_unit)))
        if extended.unit_count > MAX_UNITS:
            raise InputError(
                f"--people {people}: {extended.unit_count} units, and one folder holds {MAX_UNITS}; make several "
                "folders with their own --seed, or raise --unit-images"
            )
        return extended

    def describe(self, pending: int, asked: int) -> str:
        """The plan in a line for the user. pending: units still to be made; asked: the number of people asked for."""
        variants = self.configuration.variants
        units = f"{self.unit_count:,} units, {pending:,} to make" if pending else "every unit is there"
        fewer = f" (the folder was begun with these people, more than --people {asked})" * (asked < self.people)
        return f"plan: {self.people:,} people x {variants:,} variants = {self.images:,} images{fewer}; {units}"

    def to_json(self) -> bytes:
        """The text of plan.json."""
        content = {
            "hash": self.configuration.hash,
            "configuration": self.configuration.values(),
            "people": self.people,
            "images": self.images,
            "units": self.unit_count,
            "extents": [dataclasses.asdict(extent) for extent in self.extents],
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def read_plan(output: Output) -> Plan | None:
    """The plan in `output`; None without a plan.json. Raises InputError when plan.json is not a plan, has
    options that this program does not have, or was edited."""
    text = output.read(PLAN_FILE)
    if text is None:
        return None
    try:
        content = json.loads(text)
        values = {**content["configuration"], "layers": tuple(content["configuration"]["layers"])}
        check_known(values, Configuration)
        values["origins"] = tuple(Origin(**origin) for origin in values.get("origins", ()))
        values["cameras"] = tuple(values.get("cameras", ()))
        extents = tuple(Extent(**extent) for extent in content["extents"])
        plan = Plan(Configuration(**values), extents)
        intact = plan.configuration.hash == content["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{output.address(PLAN_FILE)} is not a plan of this program ({error}): choose another --out"
        ) from error
    if not intact:
        raise InputError(f"{output.address(PLAN_FILE)} was edited: its hash differs; choose another --out")
    return plan


def continue_plan(existing: Plan | None, configuration: Configuration, people: int) -> Plan:
    """The plan of this run: a new one, or the existing one, extended where more people are asked for.

    An existing plan keeps its recipe, and the detector threshold that its similarity references were chosen with.
    Raises InputError that names every key in which the configurations differ, with the old and the new value.
    """
    if existing is None:
        return Plan(configuration).extended(people)
    old = dataclasses.asdict(existing.configuration)
    new = dataclasses.asdict(configuration)
    decided = {"reference_threshold", "recipe"}
    if old["latents"] != new["latents"]:  # with other latents the origins differ as well
        decided.add("origins")
    agree("a run of another configuration", differences(old, with_folder_values(new, old, decided)))
    return existing.extended(people)
