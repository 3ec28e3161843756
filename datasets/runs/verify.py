"""Checks whether a run is whole, from its files and its plan alone, without a network or a filter.

The plan lists the run's images, the shards hold them, and all other files are derived from the shards.
"""

import dataclasses
import itertools
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.people.decoding import DecodingError, decode
from datasets.runs.plan import Configuration, Plan, Unit
from datasets.runs.rows import planned_columns
from datasets.runs.run import SHARD_FOLDER, SHARD_NAME, GenerationRun, shard_name
from datasets.runs.shards import ADVICE, SCHEMA, decode_shard, encode_shard
from passersby.errors import InputError

READERS = 8  # object stores answer slowly and many at a time
BYTES_AT_ONCE = 256_000_000  # raw pixels of the units that all readers hold; large units mean fewer readers
WRITER = re.compile(r"parquet-cpp-arrow version \d+\.\d+\.\d+(-SNAPSHOT)?")
MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
LINES = 10  # the most findings that are printed; the rest is counted
IDENTITY_SCORES = ("identity_cosine", "identity_margin", "nearest_identity")
ROUNDING = 1e-5  # tolerance for cosines in float32


class Findings:
    """The findings of a check: missing units with reasons, problems by kind, and notes. A run with notes is whole."""

    def __init__(self) -> None:
        self.missing: list[int] = []
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self._kinds: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._texts: list[str] = []
        self._hidden = 0

    def add(self, kind: str, name: str, text: str) -> None:
        """Add a problem of the file `name`. `kind` follows a count, as in "3 damaged"; `text` names the way out."""
        self._kinds[kind] += 1
        self._first.setdefault(kind, name)
        if len(self._texts) < LINES:  # a run may have a million problems
            self._texts.append(text)
        else:
            self._hidden += 1

    @property
    def whole(self) -> bool:
        """Whether no unit is missing and no problem was added."""
        return not (self.missing or self._kinds)

    def lines(self) -> list[str]:
        """At most LINES lines, problems before notes, and one more line that counts the rest."""
        missing = f"no shard of units {ranges(self.missing)}: the same command makes what is missing"
        texts = [missing] * bool(self.missing) + self.reasons + self._texts
        texts += [f"note: {note}" for note in self.notes]
        hidden = self._hidden + max(0, len(texts) - LINES)
        return texts[:LINES] + [f"... and {hidden:,} more"] * (hidden > 0)

    def verdict(self, plan: Plan) -> str:
        """One line that counts the missing units and the problems of each kind."""
        missing = f"{len(self.missing):,} of {plan.unit_count:,} units missing"
        kinds = [f"{count:,} {kind} ({self._first[kind]})" for kind, count in self._kinds.items()]
        return f"NOT whole: {', '.join([missing] * bool(self.missing) + kinds)}"


def ranges(numbers: Iterable[int], most: int = 8) -> str:
    """Ascending numbers as people write them: `0, 3-7, 12`. Numbers beyond the first `most` ranges are counted."""
    groups = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    rest = sum(len(run) for run in runs[most:])
    return ", ".join(texts[:most]) + (f" and {rest:,} more" if rest else "")


def check_names(names: Collection[str], plan: Plan, findings: Findings) -> set[int]:
    """The units whose shards are among `names` (all files of a run). Reports files that are no shards.

    A Parquet file below shards/ that is not in the plan is a problem: a program that reads the folder as one
    data set would read it too. Any other file there is a note.
    """
    present, others = set(), []
    for name in sorted(names):
        if not name.startswith(f"{SHARD_FOLDER}/"):
            continue
        match = SHARD_NAME.match(name)
        if match and int(match[2]) < plan.unit_count and name == shard_name(int(match[2])):
            present.add(int(match[2]))
        elif name.endswith(".parquet"):
            findings.add("not of the plan", name, f"{name} is no shard of this plan: remove it")
        else:
            others.append(name)
    if others:
        text = f"files that are no shards, left by killed writers or others: {len(others):,} ({others[0]})"
        findings.notes.append(text)
    findings.missing = [unit for unit in range(plan.unit_count) if unit not in present]
    return present


@dataclasses.dataclass(frozen=True)
class ShardCheck:
    """A unit, the rows of its shard (None where they cannot be read), and the shard's problem as (kind, text)."""

    unit: Unit
    table: pa.Table | None = None
    problem: tuple[str, str] | None = None


def check_shards(
    run: GenerationRun, present: Collection[int], decoded: Callable[[int], bool], kept: Callable[[Unit], bool]
) -> Iterator[ShardCheck]:
    """Check the shards of all units of a plan, some at a time, in order. A missing shard gives no rows.

    decoded: whether a person's images are decoded. kept: whether the rows of a unit keep the column of images.
    Memory does not grow with the number of units.
    """

    def check(unit: Unit) -> ShardCheck:
        checked = check_shard(run, unit, decoded)
        if checked.table is None or kept(unit):
            return checked
        return dataclasses.replace(checked, table=checked.table.drop_columns("image"))

    plan = run.plan
    unit_bytes = max((unit.people for unit in plan.units()), default=1) * plan.configuration.person_pixel_bytes
    readers = max(1, min(READERS, BYTES_AT_ONCE // unit_bytes))
    waiting: deque[ShardCheck | Future] = deque()
    with ThreadPoolExecutor(readers) as pool:
        for unit in plan.units():
            waiting.append(pool.submit(check, unit) if unit.unit in present else ShardCheck(unit))
            if len(waiting) > 2 * readers:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def _result(item: ShardCheck | Future) -> ShardCheck:
    return item.result() if isinstance(item, Future) else item


def check_shard(run: GenerationRun, unit: Unit, decoded: Callable[[int], bool]) -> ShardCheck:
    """Check one shard: every byte, every column against the plan, and the images of the people chosen by `decoded`."""
    name, c = shard_name(unit.unit), run.plan.configuration
    address = run.output.address(name)
    try:
        content = run.output.read(name)
    except InputError as error:
        return ShardCheck(unit, problem=("unreadable", str(error)))
    if content is None:
        return ShardCheck(unit, problem=("gone since the start", f"{address}: the same command makes it"))
    try:
        table = decode_shard(pa.BufferReader(content), address, run.plan, unit, checksums=True)
        table.validate(full=True)  # checks texts too: Parquet does not check that they are UTF-8
    except InputError as error:
        return ShardCheck(unit, problem=("damaged", str(error)))
    except pa.ArrowInvalid as error:
        return ShardCheck(unit, problem=("damaged", f"{address} is damaged ({error}): {ADVICE}"))
    if not _is_canonical(content, table, c.hash):
        text = f"{address} is damaged (bytes outside of its pages differ from what its rows give): {ADVICE}"
        return ShardCheck(unit, problem=("damaged", text))
    wrong = [*wrong_columns(table, c, unit), *wrong_scores(table, c), *wrong_images(table, c, decoded)]
    if not wrong:
        return ShardCheck(unit, table)
    more = f" (and {len(wrong) - 1:,} more)" * (len(wrong) > 1)
    return ShardCheck(unit, table, ("with wrong rows", f"{address}: {wrong[0]}{more}: {ADVICE}"))


def _is_canonical(content: bytes, table: pa.Table, plan_hash: str) -> bool:
    # Checksums cover a Parquet file's pages, but neither the pages' headers nor the footer. Equal rows give equal
    # bytes, so encoding the rows again and comparing the bytes covers the whole file.
    encoded = pa.BufferOutputStream()
    encode_shard(table, plan_hash, encoded)
    encoded = encoded.getvalue()
    if encoded.equals(pa.py_buffer(content)):
        return True
    stored_writer, encoded_writer = (
        pq.ParquetFile(pa.BufferReader(data)).metadata.created_by for data in (content, encoded)
    )
    # Another release of pyarrow may write other bytes for the same rows. Then the checksums have to suffice.
    return stored_writer != encoded_writer and WRITER.fullmatch(stored_writer) is not None


def wrong_columns(table: pa.Table, configuration: Configuration, unit: Unit) -> list[str]:
    """The first difference of each column of a unit's rows that differs from the plan."""
    count = table.num_rows
    expected = {"unit": [unit.unit] * count}
    for person in range(unit.first_person, unit.first_person + unit.people):
        for name, values in planned_columns(configuration, person).items():
            expected.setdefault(name, []).extend(values)
    wrong = []
    for name, values in expected.items():
        planned = pa.array(values, SCHEMA.field(name).type)
        stored = table[name].combine_chunks()
        if not stored.equals(planned):
            row = next(row for row in range(count) if stored[row] != planned[row])
            wrong.append(
                f"{_image_name(table, row)}: {name} is {stored[row].as_py()}, the plan says {planned[row].as_py()}"
            )
    return wrong


def wrong_scores(table: pa.Table, configuration: Configuration) -> list[str]:
    """Rules that the status, the scores and the references of a unit's rows break, with the first such row.

    An image with status ok has bytes, both scores in range, and its person's reference. The reference is the
    first variant that reaches the plan's reference threshold, or else the first variant that is ok; its SSIM
    is 1. An image with status error has a message and no scores. For scores of identity see `_identity_rules`.
    """
    status = table["status"].combine_chunks()
    ok = pc.call_function("equal", [status, "ok"]).fill_null(False).to_numpy(zero_copy_only=False)
    error = pc.call_function("equal", [status, "error"]).fill_null(False).to_numpy(zero_copy_only=False)
    has = {
        name: table[name].is_valid().to_numpy()
        for name in ("image", "message", "detector_score", "ssim", "reference_variant")
    }
    detector, ssim = (
        table[name].cast(pa.float64()).fill_null(np.nan).to_numpy() for name in ("detector_score", "ssim")
    )
    stored = table["reference_variant"].fill_null(-1).to_numpy()
    shape = (-1, configuration.variants)  # [people, variants]: decode_shard has checked that the rows have this order
    # The identity stage runs after the reference is chosen. An image that it cannot judge keeps its earlier scores.
    judged_before = error & has["image"] & has["reference_variant"] & (configuration.identity is not None)
    good = (ok | judged_before).reshape(shape)
    passing = good & (detector >= configuration.reference_threshold).reshape(shape)
    reference = np.where(passing.any(1), passing.argmax(1), good.argmax(1)).repeat(configuration.variants)
    is_reference = ok & (table["variant"].to_numpy() == reference)
    scored = has["detector_score"] | has["ssim"] | has["reference_variant"]
    rules = {
        "status is neither ok nor error": ~(ok | error),
        "status ok without an image": ok & ~has["image"],
        "status ok with a message": ok & has["message"],
        "status error without a message": error & ~has["message"],
        "status error with scores": error & scored & ~judged_before,
        "detector_score is not within 0..1": ok & ~((detector >= 0) & (detector <= 1)),
        "ssim is not within -1..1": ok & ~((ssim >= -1) & (ssim <= 1)),
        "reference_variant is not what the scores say": ok & (stored != reference),
        "the reference's ssim is not 1": is_reference & (ssim != 1),
    } | _identity_rules(table, configuration, ok, reference)
    return [f"{_image_name(table, int(bad.argmax()))}: {rule}" for rule, bad in rules.items() if bad.any()]


def _identity_rules(
    table: pa.Table, configuration: Configuration, ok: np.ndarray, reference: np.ndarray
) -> dict[str, np.ndarray]:
    """Map each rule about scores of identity to the rows that break it.

    An image has an identity_cosine where the plan has the identity stage and the image is ok. Real people
    without a real picture are the exception. `identity_margin` and `nearest_identity` also need real pictures.
    """
    has = {name: table[name].is_valid().to_numpy() for name in IDENTITY_SCORES}
    cosine, margin = (table[name].cast(pa.float64()).fill_null(np.nan).to_numpy() for name in IDENTITY_SCORES[:2])
    allowed = ok & (configuration.identity is not None)
    compared = allowed & (configuration.real is not None)
    is_reference = allowed & (table["variant"].to_numpy() == reference)
    people = is_reference.reshape(-1, configuration.variants).any(axis=1)  # people whose reference can be compared with
    artificial = people.repeat(configuration.variants) & (configuration.latents is None)
    return {
        "scores of identity that nothing can have given": has["identity_cosine"] & ~allowed
        | (has["identity_margin"] | has["nearest_identity"]) & ~compared,
        "no identity_cosine": allowed & ~has["identity_cosine"] & artificial,
        "no nearest_identity": compared & ~has["nearest_identity"],
        "identity_cosine is not within -1..1": has["identity_cosine"] & ~(np.abs(cosine) <= 1 + ROUNDING),
        "identity_margin is not within -2..2": has["identity_margin"] & ~(np.abs(margin) <= 2 + ROUNDING),
        "the reference's identity_cosine is not 1": is_reference & artificial & (cosine != 1),
    }


def wrong_images(table: pa.Table, configuration: Configuration, decoded: Callable[[int], bool]) -> list[str]:
    """Images of another format or size than the plan's, and images with status error that can be decoded."""
    wrong = []
    c = configuration
    people, column, status = table["person"].to_pylist(), table["image"], table["status"].to_pylist()
    for row, person in enumerate(people):
        content = column[row].as_py() if decoded(person) else None
        if content is None:
            continue
        try:
            decode(content, c.height, c.width)
            fault = None if content.startswith(MAGIC[c.format]) else f"the image is no {c.format}"
        except DecodingError as error:
            fault = str(error)
        if c.identity is not None and status[row] == "error" and table["reference_variant"][row].is_valid:
            continue  # the identity stage could not judge the image: see wrong_scores
        if (fault is None) != (status[row] == "ok"):
            wrong.append(f"{_image_name(table, row)}: {fault or 'status error, but its image is good'}")
    return wrong


def _image_name(table: pa.Table, row: int) -> str:
    return f"person {table['person'][row].as_py()} variant {table['variant'][row].as_py()}"


def sampled_people(plan: Plan, images: int) -> list[int]:
    """People with about `images` images in all, spread evenly over the plan; always the same people, at least one."""
    count = min(plan.people, -(-images // plan.configuration.variants))
    return [(2 * index + 1) * plan.people // (2 * count) for index in range(count)]
