"""Is a run whole? Everything that can be told from its files and its plan alone, without a network or a filter.

The same rules as everywhere: the plan says which images there are, the shards hold them, all else is derived.
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
BYTES_AT_ONCE = 256_000_000  # raw pixels of the units in all readers' hands: their number falls with large units
WRITER = re.compile(r"parquet-cpp-arrow version \d+\.\d+\.\d+(-SNAPSHOT)?")
MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
LINES = 10  # of findings; the rest is counted
IDENTITY_SCORES = ("identity_cosine", "identity_margin", "nearest_identity")
ROUNDING = 1e-5  # of cosines in float32


class Findings:
    """What was found: missing units and the reasons for it, problems by kind, and notes, which leave a run whole."""

    def __init__(self) -> None:
        self.missing: list[int] = []
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self._kinds: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._texts: list[str] = []
        self._hidden = 0

    def add(self, kind: str, name: str, text: str) -> None:
        """A problem of the file `name`; `kind` ends "3 ..." ("damaged"), `text` names the way out."""
        self._kinds[kind] += 1
        self._first.setdefault(kind, name)
        if len(self._texts) < LINES:  # a run may have a million of them
            self._texts.append(text)
        else:
            self._hidden += 1

    @property
    def whole(self) -> bool:
        """Whether nothing is missing and nothing wrong."""
        return not (self.missing or self._kinds)

    def lines(self) -> list[str]:
        """At most LINES lines, problems before notes, and one that counts the rest."""
        missing = f"no shard of units {ranges(self.missing)}: the same command makes what is missing"
        texts = [missing] * bool(self.missing) + self.reasons + self._texts
        texts += [f"note: {note}" for note in self.notes]
        hidden = self._hidden + max(0, len(texts) - LINES)
        return texts[:LINES] + [f"... and {hidden:,} more"] * (hidden > 0)

    def verdict(self, plan: Plan) -> str:
        """The one line that says what is missing and what is wrong."""
        missing = f"{len(self.missing):,} of {plan.unit_count:,} units missing"
        kinds = [f"{count:,} {kind} ({self._first[kind]})" for kind, count in self._kinds.items()]
        return f"NOT whole: {', '.join([missing] * bool(self.missing) + kinds)}"


def ranges(numbers: Iterable[int], most: int = 8) -> str:
    """Ascending numbers as people write them: `0, 3-7, 12`; of more than `most` ranges the rest is counted."""
    groups = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    rest = sum(len(run) for run in runs[most:])
    return ", ".join(texts[:most]) + (f" and {rest:,} more" if rest else "")


def check_names(names: Collection[str], plan: Plan, findings: Findings) -> set[int]:
    """The units whose shards are among `names` (all files of a run); reports strangers.

    A Parquet file below shards/ that the plan does not know is a problem: whoever reads the folder as one data set
    would read it too. Whatever else lies there is a note.
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
    """A unit, and of its shard the rows (None when they cannot be read) and what is wrong (kind, text)."""

    unit: Unit
    table: pa.Table | None = None
    problem: tuple[str, str] | None = None


def check_shards(
    run: GenerationRun, present: Collection[int], decoded: Callable[[int], bool], kept: Callable[[Unit], bool]
) -> Iterator[ShardCheck]:
    """Check the shards of all units of a plan, some at a time, in order; absent ones come without rows.

    decoded: whether a person's images are to be decoded. kept: whether the rows of a unit come with their images.
    Memory does not grow with the number of units.
    """

    def check(unit: Unit) -> ShardCheck:
        found = check_shard(run, unit, decoded)
        if found.table is None or kept(unit):
            return found
        return dataclasses.replace(found, table=found.table.drop_columns("image"))

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
        table.validate(full=True)  # texts too: Parquet does not look whether they are UTF-8
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
    # Checksums cover a Parquet file's pages, neither their headers nor the footer. But equal rows give equal bytes:
    # encoding them again and comparing covers everything.
    again = pa.BufferOutputStream()
    encode_shard(table, plan_hash, again)
    again = again.getvalue()
    if again.equals(pa.py_buffer(content)):
        return True
    stored, ours = (pq.ParquetFile(pa.BufferReader(data)).metadata.created_by for data in (content, again))
    # Another release of pyarrow may lay out the same rows in other bytes: then the checksums must do.
    return stored != ours and WRITER.fullmatch(stored) is not None


def wrong_columns(table: pa.Table, configuration: Configuration, unit: Unit) -> list[str]:
    """Columns of a unit's rows that differ from what the plan says, the first difference of each."""
    count = table.num_rows
    expected = {"unit": [unit.unit] * count}
    for person in range(unit.first_person, unit.first_person + unit.people):
        for name, values in planned_columns(configuration, person).items():
            expected.setdefault(name, []).extend(values)
    wrong = []
    for name, values in expected.items():
        wanted = pa.array(values, SCHEMA.field(name).type)
        found = table[name].combine_chunks()
        if not found.equals(wanted):
            row = next(row for row in range(count) if found[row] != wanted[row])
            wrong.append(f"{_place(table, row)}: {name} is {found[row].as_py()}, the plan says {wanted[row].as_py()}")
    return wrong


def wrong_scores(table: pa.Table, configuration: Configuration) -> list[str]:
    """Rules that the status, the scores and the references of a unit's rows break, the first row of each.

    An image with status ok has bytes, both scores in range, and its person's reference: the first variant that
    reaches the plan's reference threshold, else the first that is ok; the reference's SSIM is 1. One with status
    error says why and has no scores. Scores of identity: see `_identity_rules`.
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
    shape = (-1, configuration.variants)  # [people, variants]: rows stand so, decode_shard has seen to it
    # The identity stage comes after the reference was chosen: an image that it cannot judge keeps the scores of before.
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
    return [f"{_place(table, int(bad.argmax()))}: {rule}" for rule, bad in rules.items() if bad.any()]


def _identity_rules(
    table: pa.Table, configuration: Configuration, ok: np.ndarray, reference: np.ndarray
) -> dict[str, np.ndarray]:
    """Rules and the rows that break them. Scores of identity are there where the plan has that stage and the image is
    ok, but for real people of whom no picture was given; the last two only where real pictures were."""
    has = {name: table[name].is_valid().to_numpy() for name in IDENTITY_SCORES}
    cosine, margin = (table[name].cast(pa.float64()).fill_null(np.nan).to_numpy() for name in IDENTITY_SCORES[:2])
    allowed = ok & (configuration.identity is not None)
    compared = allowed & (configuration.real is not None)
    is_reference = allowed & (table["variant"].to_numpy() == reference)
    people = is_reference.reshape(-1, configuration.variants).any(axis=1)  # whose reference can be compared with
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
    """Images that are not of the plan's format and size, or that can be decoded although their status is error."""
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
            continue  # the stage of identities could not judge it: see wrong_scores
        if (fault is None) != (status[row] == "ok"):
            wrong.append(f"{_place(table, row)}: {fault or 'status error, but its image is good'}")
    return wrong


def _place(table: pa.Table, row: int) -> str:
    return f"person {table['person'][row].as_py()} variant {table['variant'][row].as_py()}"


def sampled_people(plan: Plan, images: int) -> list[int]:
    """Persons who have about `images` images together, at least one person if any: spread evenly, always the same."""
    count = min(plan.people, -(-images // plan.configuration.variants))
    return [(2 * index + 1) * plan.people // (2 * count) for index in range(count)]
