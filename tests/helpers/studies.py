"""Studies for tests: facts, options and results of steps without any job. No test itself."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.runs.card import write_card
from passersby.files import file_sha256
from pipeline.study.data import Facts
from pipeline.study.steps import Files, Study, StudyOptions

FACTS = Facts(
    name="market train", people=100, pictures=1000, cameras=6, many=90, unlabelled=700, queries=40, test_people=20,
    test_pictures=200, notes=("market: 3 junk images are left out",),
)  # fmt: skip
OPTIONS = StudyOptions(
    data="/data/market", preset="laptop", labelled_people=30, network=None, judge="train", kimg=60.0, people=80,
    variants=8, levels=(40,), seeds=(0, 1, 2), steps=600, truncation_psi=(0.7, 1.0), thresholds="calibrated",
    export="market1501",
)  # fmt: skip


def study(out: Path, facts: Facts = FACTS, files: Files = Files(), **changes) -> Study:  # noqa: B008 (frozen)
    return Study(dataclasses.replace(OPTIONS, **changes), out, Path("/data/market"), facts, files)


def write_network(one: Study) -> Path:
    """A file in the place of the study's generator."""
    path = one.network()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a network")
    return path


def gate(missed: tuple[str, ...] = ()) -> list[dict]:
    """The lines of a gate, all reached but these."""
    names = ("edges_ratio", "torso_ratio", "torso_spread", "same_person", "different_people", "passing")
    return [
        {"name": name, "value": 0.5, "least": 0.1, "most": None, "strict": False, "reached": name not in missed,
         "missed_by": 0.1 if name in missed else None}
        for name in names
    ]  # fmt: skip


def write_teaching(one: Study, missed: tuple[str, ...] = (), psi: str = "1", **section) -> None:
    """A card beside the study's generator."""
    path = write_network(one)
    section |= {"method": "camera", "psi": psi, "by_psi": {psi: {}}, "gate": {psi: gate(missed)}, "real": None}
    write_card(path, {"file": path.name, "sha256": file_sha256(path)}, {"teaching": section})


def write_manifest(one: Study, kept: int) -> None:
    """The manifest of a run in which `kept` people have a kept picture, and one more person has none."""
    folder = one.out / "people"
    folder.mkdir(parents=True, exist_ok=True)
    people = [person for person in range(kept + 1) for _ in range(2)]
    verdicts = ["kept" if person < kept and place % 2 == 0 else "detector" for place, person in enumerate(people)]
    pq.write_table(pa.table({"person": people, "verdict": verdicts}), folder / "manifest.parquet")


def write_calibration(one: Study) -> None:
    """A calibration that proposes thresholds."""
    (one.out / "look").mkdir(parents=True, exist_ok=True)
    command = "python jobs/generate.py --out RUN --detector-threshold 0.512 --ssim-floor 0.700 --ssim-ceiling 0.980"
    (one.out / "look/calibration.json").write_text(json.dumps({"commands": [command]}))
