"""The plan of an inversion: its frozen configuration, and the fixed units that its people are divided into.

As in a run that makes people (datasets/runs/plan.py), a unit is the same pictures on every machine and at any
time. So a file that exists never has to be made again.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from datasets.runs.configuration import check_recipe
from datasets.runs.plan import MAX_UNITS, PLAN_FILE
from datasets.runs.run import Run
from datasets.storage.local_copy import local_copy
from datasets.storage.output import Output
from passersby import weights
from passersby.errors import InputError
from passersby.options import Json, agree, canonical_sha256, check, check_known, differences, flag, stored_values

# Of new runs. On a CPU all recipes are the same. On a GPU, from 2 on float16 kernels are scaled and refinement is in
# float32, from 3 on the filtered leaky ReLU has the GPU's own kernel, and from 4 on float32 layers compute in float32,
# cuDNN's algorithms are deterministic and channels are padded.
RECIPE = 4
JOB = "invert"  # distinguishes this plan.json from that of jobs/generate.py
WHO = "who"  # the refinement that finds one who for all pictures of a person, without an encoder
REFINEMENTS = ("none", "w", "pivotal", WHO)
# Option -> its default number of steps, and the refinements that use it.
REFINEMENT_STEPS = {
    "steps": (5, ("none", "w", "pivotal")),
    "refine_steps": (100, ("w", "pivotal", WHO)),
    "pivotal_steps": (200, ("pivotal",)),
}
UNITS_OF_A_SMALL_RUN = 8  # small runs get smaller units, so that all workers get some and progress is visible
MOST_STEPS = 100_000
MOST_PICTURES = 4096  # of one person, who is never divided


@dataclasses.dataclass(frozen=True)
class InversionConfiguration:
    """Everything that changes the bytes of a shard, and nothing else.

    The number of people is absent, as more people extend a run. Raises InputError for a value out of range.
    """

    encoder: str | None  # sha256 of the file; None without an encoder, as with the refinement who
    network: str  # sha256 of the generator's file
    identity: str | None  # sha256 of the identity network's file
    perceptual: str  # sha256 of the perceptual network's file
    data: str  # fingerprint of the listed pictures (datasets/latents/pictures.py)
    splits: tuple[str, ...]
    pictures: int | None  # the most pictures of one person
    steps: int | None  # of the encoder
    refine: str
    refine_steps: int | None
    pivotal_steps: int | None
    unit_images: int
    recipe: int = 1  # `RECIPE` rises whenever a change of this code changes bytes; a folder keeps its own

    def __post_init__(self) -> None:
        check_recipe(self.recipe, RECIPE)
        check("--refine", self.refine, self.refine in REFINEMENTS, " or ".join(REFINEMENTS))
        check_encoder(self.encoder, self.refine)
        if self.steps is not None or self.encoder is not None:
            good = self.steps is not None and 1 <= self.steps <= 100
            check("--steps", self.steps, good, "1 to 100")
        for option, value in (("--refine-steps", self.refine_steps), ("--pivotal-steps", self.pivotal_steps)):
            if value is not None:
                check(option, value, 1 <= value <= MOST_STEPS, f"1 to {MOST_STEPS}")
        if self.pictures is not None:
            check("--pictures", self.pictures, 1 <= self.pictures <= MOST_PICTURES, f"1 to {MOST_PICTURES}")
        check("--unit-images", self.unit_images, 1 <= self.unit_images <= 100_000, "1 to 100000")

    @property
    def test_people(self) -> bool:
        """Whether the people are test people of re-ID networks."""
        return self.splits != ("train",)

    @property
    def hash(self) -> str:
        """sha256 of the configuration as canonical JSON; it stands in every shard."""
        return canonical_sha256(self.values())

    def values(self) -> dict[str, Json]:
        """Every key and its value. A key that a later version added is left out at its default: `stored_values`."""
        return stored_values(self, always=("recipe",))


def check_encoder(encoder: str | None, refine: str) -> None:
    """Raise InputError unless there is an encoder where the refinement `refine` starts with one, and only there."""
    if (encoder is None) != (refine == WHO):
        way_out = "leave --encoder out" if encoder else "give --encoder FILE"
        raise InputError(f"--refine {refine}: only --refine {WHO} starts without an encoder: {way_out}")


def steps_of(option: str, refine: str, steps: int | None) -> int | None:
    """The number of steps for an option of REFINEMENT_STEPS; None where the refinement `refine` has no such steps.

    steps: the user's number, None for the default. Raises InputError where the user gives steps that `refine`
    does not run.
    """
    usual, refinements = REFINEMENT_STEPS[option]
    if refine in refinements:
        return usual if steps is None else steps
    if steps is not None:
        raise InputError(f"--{flag(option)} {steps}: it belongs to --refine {' or '.join(refinements)}")
    return None


@dataclasses.dataclass(frozen=True)
class NetworkFiles:
    """Local paths of the networks of an inversion."""

    encoder: Path | None
    generator: Path
    perceptual: Path
    identity: Path | None

    @classmethod
    def of(cls, encoder: str | None, network: str | None, alexnet: str | None, identity: str | None) -> "NetworkFiles":
        """The local files of the options of these names; each option is a path or URI.

        Raises InputError, which names the option, for a missing file.
        """
        identity_file = local_copy(identity, "--identity") if identity else None
        perceptual = local_copy(alexnet, "--alexnet") if alexnet else weights.get("st-lpips-alex")
        generator = local_copy(network, "--network") if network else weights.DEMO_NETWORK
        encoder_file = local_copy(encoder, "--encoder") if encoder else None
        return cls(encoder_file, generator, perceptual, identity_file)


@dataclasses.dataclass(frozen=True)
class InversionUnit:
    """A fixed slice of the work, which becomes one shard: all pictures of `people` whole persons from
    `first_person` on. `pictures` is their number."""

    unit: int
    first_person: int
    people: int
    pictures: int


@dataclasses.dataclass(frozen=True)
class InversionPlan:
    """A configuration, the number of pictures of each person of the data set, and the extents of the run.

    An extent is the number of people that were added at one time. The units of an extent never change.
    """

    configuration: InversionConfiguration
    counts: tuple[int, ...]
    extents: tuple[int, ...] = ()

    @property
    def hash(self) -> str:
        """sha256 of the configuration, which stands in every shard."""
        return self.configuration.hash

    @property
    def people(self) -> int:
        """Number of people in all."""
        return sum(self.extents)

    @property
    def pictures(self) -> int:
        """Number of pictures in all."""
        return sum(self.counts[: self.people])

    @property
    def unit_count(self) -> int:
        """Number of units in all; units are 0 to unit_count - 1."""
        return sum(1 for _ in self.units())

    def units(self) -> Iterator[InversionUnit]:
        """Every unit, in order.

        A unit is whole persons with at most `unit_images` pictures in all, or one person with more. In a small
        extent units have fewer pictures, so that there are about UNITS_OF_A_SMALL_RUN units.
        """
        unit = first = 0
        for extent in self.extents:
            end = first + extent
            most = max(1, min(self.configuration.unit_images, -(-sum(self.counts[first:end]) // UNITS_OF_A_SMALL_RUN)))
            while first < end:
                people, pictures = 1, self.counts[first]
                while first + people < end and pictures + self.counts[first + people] <= most:
                    pictures += self.counts[first + people]
                    people += 1
                yield InversionUnit(unit, first, people, pictures)
                unit, first = unit + 1, first + people

    def extended(self, people: int | None) -> "InversionPlan":
        """This plan with `people` people in all, None for everybody; the same plan when it has that many or more.

        Raises InputError for less than one person, for more people than the data set has, for a person with
        more than MOST_PICTURES pictures, and for more units than file names can number.
        """
        available = len(self.counts)
        if people is not None and not 1 <= people <= available:
            raise InputError(f"--people {people}: must be 1 to {available:,}, as many as there are")
        people = people or available
        if people <= self.people:
            return self
        most = max(self.counts[:people])
        if most > MOST_PICTURES:
            raise InputError(
                f"--data: one person has {most:,} pictures, and a person is never divided: give --pictures, at most "
                f"{MOST_PICTURES}"
            )
        extended = dataclasses.replace(self, extents=(*self.extents, people - self.people))
        if extended.unit_count > MAX_UNITS:
            raise InputError(f"--people {people}: {extended.unit_count} units, and one folder holds {MAX_UNITS}")
        return extended

    def describe(self, pending: int, asked: int | None) -> str:
        """The plan in a line for the user. pending: units still to be made; asked: the number of people asked for."""
        units = f"{self.unit_count:,} units, {pending:,} to make" if pending else "every unit is there"
        fewer = f" (the folder was begun with these people, more than --people {asked})"
        fewer *= asked is not None and asked < self.people
        return f"plan: {self.pictures:,} pictures of {self.people:,} people{fewer}; {units}"

    def to_json(self) -> bytes:
        """The text of plan.json."""
        content = {
            "job": JOB,
            "hash": self.configuration.hash,
            "configuration": self.configuration.values(),
            "test_people": self.configuration.test_people,
            "people": self.people,
            "pictures": self.pictures,
            "units": self.unit_count,
            "extents": list(self.extents),
        }
        return (json.dumps(content, indent=2) + "\n").encode()


@dataclasses.dataclass(frozen=True)
class StoredPlan:
    """The content of plan.json. It holds the data set's fingerprint, but not the number of pictures of each person."""

    configuration: InversionConfiguration
    extents: tuple[int, ...]


def read_inversion_plan(output: Output) -> StoredPlan | None:
    """The plan in `output`; None without a plan.json. Raises InputError when plan.json is no plan of this job,
    has options that this program does not have, or was edited."""
    text = output.read(PLAN_FILE)
    if text is None:
        return None
    address = output.address(PLAN_FILE)
    try:
        content = json.loads(text)
        if content.get("job") != JOB:
            raise InputError(f"{address} is the plan of another job than invert: choose another --out")
        values = {**content["configuration"], "splits": tuple(content["configuration"]["splits"])}
        check_known(values, InversionConfiguration)
        configuration = InversionConfiguration(**values)
        extents = tuple(content["extents"])
        good = all(type(people) is int and people > 0 for people in extents)
        intact = configuration.hash == content["hash"] and content["people"] == sum(extents)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{address} is not a plan of this program ({error}): choose another --out") from error
    if not (good and intact):
        raise InputError(f"{address} was edited: its hash differs; choose another --out")
    return StoredPlan(configuration, extents)


def continue_inversion(
    stored: StoredPlan | None, configuration: InversionConfiguration, counts: Sequence[int], people: int | None
) -> InversionPlan:
    """The plan of this run: a new one, or the existing one, extended where more people are asked for.

    counts: pictures of each person of the data set. An existing plan keeps its recipe. Raises InputError that names
    every key in which the configurations differ, with the old and the new value.
    """
    counts = tuple(counts)
    if stored is None:
        return InversionPlan(configuration, counts).extended(people)
    configuration = dataclasses.replace(configuration, recipe=stored.configuration.recipe)
    old, new = dataclasses.asdict(stored.configuration), dataclasses.asdict(configuration)
    agree("a run of another configuration", differences(old, new))
    return InversionPlan(configuration, counts, stored.extents).extended(people)


InversionRun: TypeAlias = Run[InversionPlan, InversionUnit]


def begin_inversion(
    output: Output, configuration: InversionConfiguration, counts: Sequence[int], people: int | None
) -> InversionRun:
    """Begin an inversion of `people` people, or continue the one in the folder. Raises InputError as
    `continue_inversion`."""

    def plan_now() -> InversionPlan:
        return continue_inversion(read_inversion_plan(output), configuration, counts, people)

    return Run(output, plan_now(), plan_now)
