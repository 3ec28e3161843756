"""Folders like those of jobs/sweep.py, with known scores, for tests of reports."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LEVELS, SEEDS, QUERIES = (0, 10, 20, 40), (0, 1, 2), 60
SCHEMA = pa.schema(
    [("trial", pa.string()), ("sweep", pa.string()), ("arm", pa.string()), ("level", pa.int64()), ("seed", pa.int64()),
     ("steps", pa.int64()), ("minutes", pa.float64())]
    + [(name, pa.float64()) for name in ("rank1", "rank5", "rank10", "mAP", "mINP")]
    + [("generated_images", pa.int64()), ("real_images", pa.int64()), ("query_identity", pa.list_(pa.int64())),
       ("query_ap", pa.list_(pa.float64())), ("query_first_hit", pa.list_(pa.int64())), ("network", pa.string())]
)  # fmt: skip


def trials(arms: dict[str, float], sweep: str = "artificial-people") -> pa.Table:
    """Trials of arms: name -> gain of mAP at the greatest level; seeds differ by -0.005, 0 and 0.005."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.7, QUERIES)
    rows = []
    for arm, gain in arms.items():
        for level in LEVELS:
            for seed in SEEDS:
                precision = base + gain * level / LEVELS[-1] + 0.005 * (seed - 1)
                rows.append(
                    {"trial": f"level-{level:04d}-seed-{seed}-{arm}", "sweep": sweep, "arm": arm, "level": level,
                     "seed": seed,
                     "steps": 1200, "minutes": 3.0, "rank1": 0.7 + 0.005 * (seed - 1), "rank5": 0.9, "rank10": 0.95,
                     "mAP": precision.mean(), "mINP": 0.3, "generated_images": 40 * level, "real_images": 2000,
                     "query_identity": np.repeat(np.arange(1, QUERIES // 3 + 1), 3).tolist(),
                     "query_ap": precision.tolist(), "query_first_hit": [0] * QUERIES, "network": "network.safetensors"}
                )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def record(leak: bool = False, toy: str = "toy crowd", sweep: str = "artificial-people") -> dict:
    """The contents of sweep.json."""
    findings = [{"what": "generator", "verdict": "leak" if leak else "clean", "reason": "it saw 3 test people"}]
    return {
        "hash": "ab", "configuration": {"sweep": sweep, "data": {"name": toy}}, "sweep": sweep, "trials": 24,
        "equal": "steps", "one_generator": True, "paths": {"data": "/nowhere"}, "command": "python jobs/sweep.py",
        "leak": {"verdict": findings[0]["verdict"], "allowed": leak, "findings": findings},
    }  # fmt: skip


def write_sweep(folder: Path, arms: dict[str, float] | None = None, **about) -> None:
    """Write sweep.json and trials.parquet."""
    table = trials(arms or {"labels=hard": -0.04, "labels=smooth": 0.04}, about.get("sweep", "artificial-people"))
    pq.write_table(table, folder / "trials.parquet")
    (folder / "sweep.json").write_text(json.dumps(record(**about)))
