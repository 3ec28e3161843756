"""The results of a sweep: a file for each trial, and the table that is derived from these files."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.storage.output import Output
from passersby.errors import InputError
from tune.levels import Trial
from tune.sweep import TRIALS

RESULT, FAILURE = "result.json", "failed.json"
TABLE = "trials.parquet"
SCHEMA = pa.schema(
    [
        ("trial", pa.string()),
        ("sweep", pa.string()),
        ("arm", pa.string()),
        ("level", pa.int64()),
        ("seed", pa.int64()),
        ("steps", pa.int64()),
        ("minutes", pa.float64()),
        *((score, pa.float64()) for score in ("rank1", "rank5", "rank10", "mAP", "mINP")),
        ("generated_images", pa.int64()),
        ("real_images", pa.int64()),
        ("query_identity", pa.list_(pa.int64())),
        ("query_ap", pa.list_(pa.float64())),  # nan for a query without a match
        ("query_first_hit", pa.list_(pa.int64())),  # from 0; -1 without a match
        ("network", pa.string()),  # its path below OUT
    ]
)


class Row(TypedDict):
    """A finished trial, in the columns of SCHEMA."""

    trial: str
    sweep: str
    arm: str
    level: int
    seed: int
    steps: int
    minutes: float
    rank1: float
    rank5: float
    rank10: float
    mAP: float
    mINP: float
    generated_images: int
    real_images: int
    query_identity: list[int]
    query_ap: list[float]
    query_first_hit: list[int]
    network: str


def write_result(folder: Path, row: Row, sweep_hash: str) -> None:
    """Write a trial's result atomically. The file makes the trial a finished one."""
    values = row | {"query_ap": [None if math.isnan(value) else value for value in row["query_ap"]]}
    values |= {name: None if math.isnan(row[name]) else row[name] for name in _SCORES}
    text = json.dumps({"sweep_hash": sweep_hash, "row": values}, allow_nan=False)
    Output(str(folder)).write(RESULT, f"{text}\n".encode())


_SCORES = ("rank1", "rank5", "rank10", "mAP", "mINP")


def read_result(folder: Path, sweep_hash: str) -> Row | None:
    """A trial's row, None if it is not finished. Raises InputError for a file of another sweep, or a damaged file."""
    path = folder / RESULT
    try:
        content = json.loads(path.read_text("utf-8"))
        row = content["row"]
        row |= {"query_ap": [math.nan if value is None else value for value in row["query_ap"]]}
        row |= {name: math.nan if row[name] is None else row[name] for name in _SCORES}
        if row.keys() != set(SCHEMA.names):
            raise KeyError(*(row.keys() ^ set(SCHEMA.names)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be used ({error}): remove it, and the same command evaluates again") from error
    if content.get("sweep_hash") != sweep_hash:
        raise InputError(f"{path} is of a sweep of another configuration: choose another --out")
    return row


def read_results(out: Path, trials: Iterable[Trial], sweep_hash: str) -> dict[str, Row]:
    """Name of a trial -> its row, for the finished trials."""
    rows = ((trial.name, read_result(out / TRIALS / trial.name, sweep_hash)) for trial in trials)
    return {name: row for name, row in rows if row is not None}


def write_table(output: Output, rows: Mapping[str, Row], sharing: Mapping[str, Iterable[str]]) -> None:
    """Write trials.parquet again: one row for each finished trial, in the order of arm, level and seed.

    sharing: arm -> the arms that share its trainings at level 0 (`Sweep.sharing`). These get copies of its rows, under
    their names.
    """
    copies = [row | {"arm": arm} for row in rows.values() if row["level"] == 0 for arm in sharing.get(row["arm"], ())]
    ordered = sorted([*rows.values(), *copies], key=lambda row: (row["arm"], row["level"], row["seed"]))
    table = pa.Table.from_pylist(ordered, schema=SCHEMA)
    with output.replacing(TABLE) as path:
        pq.write_table(table, path)


def write_failure(folder: Path, reason: str) -> None:
    """Record the reason of a trial's final failure. The next start of the sweep tries the trial again."""
    Output(str(folder)).write(FAILURE, (json.dumps({"reason": reason}) + "\n").encode())


def read_failure(folder: Path) -> str | None:
    """The reason of a trial's failure, None if it did not fail."""
    try:
        return str(json.loads((folder / FAILURE).read_text("utf-8"))["reason"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{FAILURE} cannot be read ({error})"


def best_level(rows: Iterable[Row]) -> str:
    """The level and arm of the best mean mAP so far, as text; "" before the first trial."""
    scores: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if not math.isnan(row["mAP"]):
            scores.setdefault((row["arm"], row["level"]), []).append(row["mAP"])
    if not scores:
        return ""
    (arm, level), values = max(scores.items(), key=lambda item: sum(item[1]) / len(item[1]))
    seeds = f"{len(values)} seed{'s' * (len(values) > 1)}"
    return f"best so far level {level}{f' with {arm}' if arm else ''}: mAP {sum(values) / len(values):.1%}, {seeds}"
