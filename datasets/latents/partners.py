"""The codes of real people for a run: the part of a latents table that workers need, and each variant's partner."""

import dataclasses

import numpy as np

from datasets.latents.table import Latents
from datasets.people.listing import UNKNOWN_CAMERA
from datasets.runs.configuration import CAMERA, PEOPLE, PICTURES, Configuration, Origin
from datasets.runs.rows import partner_count
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.weights import former_demo_network

NO_WHO = "the people of --latents have no who: invert with jobs/invert.py --refine who"


@dataclasses.dataclass(frozen=True, eq=False)
class RealCodes:
    """The people of a latents table in the form that a StyleMixer needs; a worker's arrays may be read-only.

    people: [P, num_ws, w_dim] float32, each person's own code. pictures: [N, num_ws, w_dim] float32, the codes
    of all pictures; [0, ...] where partners are random. persons: [N] int64, the person in each picture,
    ascending. nearest: [P] int64, the picture that a person's origin names. table: the table without its
    codes, for reading the deltas. whos [P, n] float32 and offsets [P, w_dim] float32: those of the table, for the
    method camera alone; a person's own code is then that of the nearest picture, because a mean of codes that differ
    in how would be seen in no way at all.
    """

    people: np.ndarray
    pictures: np.ndarray
    persons: np.ndarray
    nearest: np.ndarray
    table: Latents
    whos: np.ndarray | None = None
    offsets: np.ndarray | None = None

    def delta(self, person: int) -> bytes | None:
        """The person's change of the network, None without one. Raises InputError where the file is not the table's."""
        return self.table.delta(person)


def check_generator(latents: Latents, sha256: str, network: str) -> None:
    """Raises InputError unless the codes belong to the network of this sha256. `network` is its name for messages."""
    generator = latents.about["generator"]
    if generator["sha256"] != sha256:
        if former := former_demo_network(generator["sha256"]):
            raise InputError(f"the codes of --latents are of {former}")
        raise InputError(
            f"--network {network}: its sha256 is {sha256[:12]}..., but the codes of --latents are of "
            f"{generator.get('file') or 'a network'} with {generator['sha256'][:12]}...: give that one"
        )


def origins_of(latents: Latents) -> tuple[Origin, ...]:
    """The origin of every person of a table, in its order."""
    return tuple(_origin(latents, person) for person in range(latents.people))


def _origin(latents: Latents, person: int) -> Origin:
    nearest = latents.medoid(person)
    camera = int(latents.cameras[nearest])
    return Origin(
        name=latents.names[person],
        path=latents.paths[nearest],
        camera=None if camera == UNKNOWN_CAMERA else camera,
        pictures=len(latents.pictures_of(person)),
    )


def real_codes(latents: Latents, configuration: Configuration, people: int) -> RealCodes:
    """The codes for a run of `people` people of the table that `configuration` names.

    Raises InputError where there are too few pictures to make all variants different, and where a delta is
    missing.
    """
    is_camera = configuration.method == CAMERA
    if is_camera and latents.whos is None:
        raise InputError(f"--method camera: {NO_WHO}, or give --method mix")
    _check_partners(configuration, people)
    _check_deltas(latents, people)
    rows_of_person = [latents.pictures_of(person).tolist() for person in range(latents.people)]
    nearest = [
        next(row for row in rows if latents.paths[row] == origin.path)
        for rows, origin in zip(rows_of_person, configuration.origins, strict=True)
    ]
    return RealCodes(
        people=latents.codes[nearest] if is_camera else latents.person_codes(),
        pictures=latents.codes[:0] if configuration.draws_codes else latents.codes,
        persons=latents.persons,
        nearest=np.array(nearest, np.int64),
        table=dataclasses.replace(latents, codes=latents.codes[:0], paths=(), whos=None, offsets=None),
        whos=latents.whos if is_camera else None,
        offsets=latents.offsets if is_camera else None,
    )


def _check_deltas(latents: Latents, people: int) -> None:
    delta_names = [latents.deltas[person][0] for person in range(people) if person in latents.deltas]
    if not delta_names:
        return
    folder = Output(latents.folder)
    existing_names = set(folder.list("deltas"))
    missing = [name for name in delta_names if name not in existing_names]
    if missing:
        raise InputError(
            f"--latents: {len(missing):,} of {len(delta_names):,} deltas that it names are not there, the first is "
            f"{folder.address(missing[0])}: copy the folder again, whole, or invert again"
        )


def _check_partners(configuration: Configuration, people: int) -> None:
    if configuration.draws_codes or configuration.variants == 1:
        return
    counts = [partner_count(configuration, person) for person in range(people)]
    if configuration.partners == PICTURES and not any(counts):
        raise InputError(
            "--partners pictures: nobody in --latents has two pictures: take --partners random, or invert more of each"
        )
    fewest = min(counts)
    if configuration.partners == PEOPLE and not fewest:
        raise InputError("--partners people: --latents has nobody else: take --partners random")
    if configuration.method == "mix" and fewest < configuration.variants - 1:
        raise InputError(
            f"--variants {configuration.variants}: --latents has only {fewest} pictures of other people to mix with, "
            f"and every variant takes another one: ask for at most {fewest + 1}, or take --partners random"
        )


def partners_of(codes: RealCodes, configuration: Configuration, person: int) -> np.ndarray:
    """The pictures [V - 1] that a person's variants from 1 on take styles from, as rows of `codes.pictures`.

    The candidates are other people's pictures, or the person's own pictures without the one nearest to the
    code. Of the n candidates that no earlier variant has taken, variant v takes the one with the index mix
    seed modulo n. When all are taken, all become candidates again. The result is empty without candidates.
    """
    c = configuration
    if c.partners == PEOPLE:
        rows = np.flatnonzero(codes.persons != person)
    else:
        rows = np.flatnonzero(codes.persons == person)
        rows = rows[rows != codes.nearest[person]]
    remaining_rows, chosen = [], []
    for variant in range(1, c.variants) if len(rows) else ():
        remaining_rows = remaining_rows or rows.tolist()
        chosen.append(remaining_rows.pop(c.mix_seed(person, variant) % len(remaining_rows)))
    return np.array(chosen, np.int64)
