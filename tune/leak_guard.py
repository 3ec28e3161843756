"""The leak guard: have the networks that made a sweep's pictures seen the people that its trainings are tested with?

Networks and latents carry records of whom they were trained on: hashes and counts of people, no lists. So three things
can be found: "clean" and "leak" where the record shows it, else "unknown". docs/sweeps.md states the rules.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

from datasets.latents.table import About
from datasets.people.market1501 import toy_crowd_record
from datasets.people.readers import address, read_split
from datasets.people.real_people import matched_names
from datasets.people.splits import GALLERY, QUERY, TRAIN
from datasets.reid.sources import people_sha256
from datasets.runs.configuration import Origin
from passersby.errors import InputError
from passersby.options import Json
from tune.levels import GeneratedRun

CLEAN, LEAK, UNKNOWN = VERDICTS = ("clean", "leak", "unknown")
_MOST_ANCESTORS = 50


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was looked at ("generator", "encoder", ...), the verdict on it, and why."""

    what: str
    verdict: str
    reason: str


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Whom a sweep trains on and whom it tests with, by the data set's names for them.

    train, query, gallery: without junk and distractors. toy_hash: of the program that drew a toy crowd, None for
    other data. test_paths: of the test pictures, relative to the data set, as latents name them. fingerprints: of the
    splits' listings (datasets/people/labelled_images.py).
    """

    name: str
    train: frozenset[str]
    query: frozenset[str]
    gallery: frozenset[str]
    toy_hash: str | None = None
    test_paths: frozenset[str] = frozenset()
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    train_images: int = 0

    @property
    def test(self) -> frozenset[str]:
        """Everybody of query and gallery."""
        return self.query | self.gallery


def read_data_set(root: str | Path) -> DataSet:
    """The people of a data set. Raises InputError where a split is missing, and where people trained on are those
    tested with: then every score would be wrong, with generated pictures and without."""
    splits = {split: read_split(root, split) for split in (TRAIN, QUERY, GALLERY)}
    people = {split: frozenset(listing.people.values()) for split, listing in splits.items()}
    shared = sorted(people[TRAIN] & people[QUERY])
    if shared:
        raise InputError(
            f"--data {root}: {len(shared):,} people are trained on and tested with, the first is {shared[0]!r}: give a "
            "data set whose query and gallery are other people"
        )
    toy = toy_crowd_record(Path(root)) if isinstance(address(root), Path) else None
    contents = (*splits[QUERY].contents, *splits[GALLERY].contents)
    relative = (path.relative_to(root).as_posix() for path in contents if _is_below(path, root))
    return DataSet(
        name=splits[TRAIN].name.removesuffix(f" {TRAIN}"),
        train=people[TRAIN],
        query=people[QUERY],
        gallery=people[GALLERY],
        toy_hash=None if toy is None else str(toy.get("content_hash")),
        test_paths=frozenset(relative),
        fingerprints={split: listing.fingerprint() for split, listing in splits.items()},
        train_images=len(splits[TRAIN]),
    )


def _is_below(content: Path | bytes, root: str | Path) -> TypeGuard[Path]:
    return isinstance(content, Path) and content.is_relative_to(root)


def verdict_of(findings: Iterable[Finding]) -> str:
    """ "leak" where one finding is, else "unknown" where one is, else "clean"."""
    found = {finding.verdict for finding in findings}
    return next((verdict for verdict in (LEAK, UNKNOWN) if verdict in found), CLEAN)


def judge_network(what: str, record: Json, data: DataSet) -> list[Finding]:
    """Findings on a network's record, and on those of the networks that it started from, of training after training."""
    findings, number = [], 0
    for number, ancestor in enumerate(_line(record)):
        name = what if number == 0 else f"{what}, started from a network"
        findings.append(judge_training(name, ancestor.get("trained_on"), data))
    if number + 1 >= _MOST_ANCESTORS:
        findings.append(Finding(what, UNKNOWN, f"it has more than {_MOST_ANCESTORS} trainings behind it"))
    return findings or [Finding(what, UNKNOWN, "no record says whom it was trained on")]


def _line(record: Json) -> Iterator[Mapping[str, Json]]:
    for _ in range(_MOST_ANCESTORS):
        if not isinstance(record, Mapping):
            return
        yield record
        start = record.get("transferred_from")
        if start is None:
            return
        # A start that nobody recorded is one more training, of whom is unknown.
        record = start.get("record") if isinstance(start, Mapping) else None
        record = record if isinstance(record, Mapping) else {}


def judge_training(what: str, trained_on: Json, data: DataSet) -> Finding:
    """The finding on one record "trained_on": that of a generator (training/gan/run.py), or of a training on a
    TrainingImages (encoders, re-ID networks), whose `real` lists data sets."""
    if not isinstance(trained_on, Mapping):
        return Finding(what, UNKNOWN, "no record says whom it was trained on")
    parts = trained_on.get("real") if "real" in trained_on else [trained_on]
    known = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    if not isinstance(parts, list) or not parts or len(known) < len(parts):
        return Finding(what, UNKNOWN, "its record of whom it was trained on cannot be read")
    findings = [_judge_part(what, part, data) for part in known]
    verdict = verdict_of(findings)
    return next(finding for finding in findings if finding.verdict == verdict)


def _judge_part(what: str, part: Mapping[str, Json], data: DataSet) -> Finding:
    name = str(part.get("name", "data of unknown name"))[:80]
    identities = part.get("identities")
    if isinstance(identities, Mapping):  # of a generator
        sha256, count = identities.get("sha256"), identities.get("count")
    else:
        sha256, count = part.get("sha256"), part.get("people")
    toy = part.get("toy_crowd")
    toy_hash = str(toy.get("content_hash")) if isinstance(toy, Mapping) else None
    if data.toy_hash is None and toy_hash is not None:
        return Finding(what, CLEAN, f"{name}: drawn people, none of whom is real")
    if data.toy_hash is not None and toy_hash == data.toy_hash:
        # People of a toy crowd's train split are never those of another one's test (datasets/toy_crowd/tree.py).
        if part.get("split", TRAIN) == TRAIN:
            return Finding(what, CLEAN, f"{name}: the train split of the same toy crowd")
        return Finding(what, LEAK, f"{name}: split {part.get('split')} of the same toy crowd")
    if data.toy_hash is not None and toy_hash is not None:
        return Finding(what, UNKNOWN, f"{name}: a toy crowd drawn by another version of the program")
    group = _group_of(sha256, count, data)
    if group == TRAIN:
        return Finding(what, CLEAN, f"{name}: {count:,} people, those of {data.name} train")
    if group is not None:
        return Finding(what, LEAK, f"{name}: {count:,} people, those of {data.name} {group}")
    return Finding(what, UNKNOWN, f"{name}: people who cannot be compared with those of {data.name}")


def _group_of(sha256: Json, count: Json, data: DataSet) -> str | None:
    """Which people of the data set have this hash: of a split the first `count` (a generator's training sets the last
    ones aside for validation)."""
    if not isinstance(sha256, str) or not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return None
    groups = {TRAIN: data.train, "query and gallery": data.test, QUERY: data.query, GALLERY: data.gallery}
    groups["train, query and gallery"] = data.train | data.test
    for name, people in groups.items():
        if count <= len(people) and people_sha256(_in_order(people)[:count]) == sha256:
            return name
    return None


def _in_order(people: Iterable[str]) -> list[str]:
    people = set(people)
    numbers = all(name.isascii() and name.isdecimal() for name in people)
    return sorted(people, key=int if numbers else None)


def judge_origins(origins: Iterable[Origin], data: DataSet) -> Finding:
    """The finding on the real people whose latents a run was made from, by their pictures' paths and their names."""
    origins = tuple(origins)
    what, test = "latents", [origin for origin in origins if origin.path in data.test_paths]
    if test:
        return Finding(what, LEAK, f"{len(test):,} of {len(origins):,} people are of query or gallery: {test[0].path}")
    names = [origin.name for origin in origins]
    known, tested = matched_names(names, data.train), matched_names(names, data.test)
    strangers = [name for name in names if name not in known]
    if strangers and any(name in tested for name in strangers):
        first = next(name for name in strangers if name in tested)
        return Finding(what, LEAK, f"person {first!r} is one of query or gallery")
    if strangers:
        return Finding(what, UNKNOWN, f"{len(strangers):,} of {len(names):,} people are not in {data.name} train")
    return Finding(what, CLEAN, f"{len(names):,} people of {data.name} train")


def judge_latents(about: About, data: DataSet) -> list[Finding]:
    """Findings on what the metadata of latents say: whether of test people, and of whom their networks have seen."""
    findings = []
    if about.get("test_people") is not False:
        said = about.get("test_people")
        verdict, reason = (LEAK, "made of people tested with") if said else (UNKNOWN, "nothing says of whom")
        findings.append(Finding("latents", verdict, reason))
    records = about.get("records")
    records = records if isinstance(records, Mapping) else {}
    for part in ("encoder", "generator"):
        what = "encoder" if part == "encoder" else "generator of the latents"
        findings += judge_network(what, records.get(part), data)
    return findings


def judge_run(run: GeneratedRun, latents_about: About | None, data: DataSet) -> list[Finding]:
    """Findings on a run; latents_about: `about` of the latents that it was made from, None where they are not at
    hand."""
    if run.plan is None:
        return [Finding("generator", UNKNOWN, f"{run.record['name']} is no run of jobs/generate.py")]
    configuration, record = run.plan.configuration, run.network
    if record.get("sha256") != configuration.network:
        record = None  # summary.json is of another network, or not there
    findings = judge_network("generator", record, data)
    if configuration.latents is not None:
        findings.append(judge_origins(configuration.origins[: run.plan.people], data))
        if latents_about is None:
            findings.append(Finding("encoder", UNKNOWN, "give --latents, whose record says whom it was trained on"))
        else:
            findings += judge_latents(latents_about, data)
    return findings


def refuse_leak(findings: Iterable[Finding], allowed: bool) -> None:
    """Raises InputError for the first leak, unless allowed."""
    leak = next((finding for finding in findings if finding.verdict == LEAK), None)
    if leak and not allowed:
        raise InputError(
            f"--generated: its {leak.what} has seen people that re-ID is tested with ({leak.reason}): scores would be "
            "too good; generate by networks trained on training people only, or give --allow-leak, which the report "
            "says in red"
        )
