"""A unit of work as one Ray Data row, and the columns of the row that the plan alone decides.

One row is one unit: whole persons, so that no batch boundary of Ray's decides what is computed together. The columns
of the images are therefore list columns with one entry an image. Only `images_of` and `with_columns` know this
layout. The plan decides three things about every image: its origin, its seeds, and how far it moves from its
person. They do not depend on the worker.
"""

import sys
from collections.abc import Awaitable
from typing import TypeAlias, TypeVar, cast

import numpy as np
import pyarrow as pa

from datasets.runs.configuration import CAMERA, PEOPLE, PICTURES, Configuration
from datasets.runs.verdicts import LATENT

# ---- The layout of a row: its images as a table, and columns added to it.


def images_of(batch: pa.Table) -> pa.Table:
    """The images of a unit as a table of n rows, one an image.

    `batch` is one Ray Data row: a table of exactly one row. Its list columns become plain columns
    without copying; its scalar columns (`unit`, `seconds_*`) are left out. Raises ValueError when the
    batch is not one row, or when two list columns differ in length: scores would meet wrong images.
    """
    if batch.num_rows != 1:
        raise ValueError(f"a batch must be one unit, this one has {batch.num_rows} rows: use batch_size=1")
    columns = {
        field.name: batch.column(field.name).combine_chunks().flatten()
        for field in batch.schema
        if pa.types.is_list(field.type)
    }
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of a unit differ in length: {lengths}")
    return pa.table(columns)


def with_columns(batch: pa.Table, columns: dict[str, pa.Array | pa.ChunkedArray | pa.Scalar | int | float]) -> pa.Table:
    """The unit with columns added, or replaced in place; `batch` itself stays as it is (Ray's are read-only).

    An Arrow array of n entries becomes a list column of the unit's n images, of the array's own type;
    a scalar becomes a scalar column: an Arrow scalar with its type, a Python int as int64, a Python
    float as float64. Raises ValueError when an array's length is not n, TypeError for anything else
    (NumPy arrays too: an all-null column would lose its type).
    """
    count = next((len(column) for column in images_of(batch).columns), None)
    for name, value in columns.items():
        if isinstance(value, int | float | np.integer | np.floating):
            column = pa.array([value], pa.int64() if isinstance(value, int | np.integer) else pa.float64())
        elif isinstance(value, pa.Array | pa.ChunkedArray):
            count = len(value) if count is None else count
            if len(value) != count:
                raise ValueError(f"column {name!r} has {len(value)} entries, the unit has {count} images")
            values = value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value
            column = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), values)
        elif isinstance(value, pa.Scalar):
            column = pa.array([value.as_py()], value.type)
        else:
            raise TypeError(
                f"column {name!r} is {type(value).__name__}: give an Arrow array, an Arrow scalar or a number"
            )
        index = batch.schema.get_field_index(name)
        batch = batch.append_column(name, column) if index < 0 else batch.set_column(index, name, column)
    return batch


T = TypeVar("T")
Reference: TypeAlias = Awaitable[T]  # a Ray reference (`ray.put`), for stages that do not import Ray


def resolved(value: T | Reference[T]) -> T:
    """The value itself, or the value of a Ray reference. Without an imported Ray no value is a reference."""
    ray = sys.modules.get("ray")
    if ray is not None and isinstance(value, ray.ObjectRef):
        return ray.get(value)
    return cast(T, value)  # the value is no reference; a type checker cannot tell without importing Ray


# ---- The columns that the plan decides.

SEED = "seed"  # the `source` of artificial people's images
NO_PARTNER = "this person has no other picture to move towards"


def planned_columns(configuration: Configuration, person: int) -> dict[str, list]:
    """The columns of a shard that the plan alone decides, for a person's variants in their order."""
    c, latent = configuration, configuration.latents is not None
    origin = c.origins[person] if latent else None
    varied = range(1, c.variants)
    constants = {
        "source": LATENT if latent else SEED,
        "source_path": origin.path if origin else None,
        "seed": None if latent else c.person_seed(person),
        "method": c.method,
        "height": c.height,
        "width": c.width,
    }
    mix_layers = [None] * c.variants if c.method == CAMERA else [[], *(list(c.layers) for _ in varied)]
    return {name: [value] * c.variants for name, value in constants.items()} | {
        "camera": [
            origin.camera if origin and (variant == 0 or c.method != CAMERA) else c.camera(person, variant)
            for variant in range(c.variants)
        ],
        "mix_seed": [None, *(c.mix_seed(person, variant) for variant in varied)],
        "mix_layers": mix_layers,
        "amount": amounts_of(c, person),
        "truncation_psi": [None if latent else c.truncation_psi, *(c.truncation_psi for _ in varied)],
    }


def partner_count(configuration: Configuration, person: int) -> int:
    """The number of pictures that a person's variants may take styles from; 0 where codes are drawn."""
    picture_count = configuration.origins[person].pictures if configuration.origins else 0
    if configuration.partners == PICTURES:
        return picture_count - 1
    if configuration.partners == PEOPLE:
        return configuration.pictures - picture_count
    return 0


def amounts_of(configuration: Configuration, person: int) -> list[float | None]:
    """How far each variant moves towards its partner: None for the base, for mixing, and without a partner.

    All variants have the same amount where there are enough pictures to move towards. With fewer pictures the
    variants go through the pictures in R rounds, and in round r = 0 .. R - 1 they move only (R - r) / R of the
    way, so that no two variants are equal.
    """
    c = configuration
    if c.draws_codes or c.amount is None:
        return [None] + [c.amount] * (c.variants - 1)
    count = partner_count(c, person)
    if not count:
        return [None] * c.variants
    rounds = -(-(c.variants - 1) // count)
    return [None] + [c.amount * (rounds - index // count) / rounds for index in range(c.variants - 1)]


def people_without_partners(configuration: Configuration, people: int) -> str:
    """A line for the user about the people who have no picture to move towards; empty without such people."""
    if configuration.partners != PICTURES or configuration.variants == 1:
        return ""
    alone = [configuration.origins[person].name for person in range(people) if not partner_count(configuration, person)]
    if not alone:
        return ""
    return (
        f"note: {len(alone):,} of {people:,} people have one picture only, the first is {alone[0]!r}: there is none to "
        "move towards, so their variants get status error"
    )
