"""The leak guard: did the networks that made a sweep's pictures see the people that its trainings are tested with?

The files of networks and latents contain records of the people that they were trained on: hashes and counts of people,
no lists. There are three verdicts: "clean" and "leak" if the record shows it, else "unknown". docs/sweeps.md states the
rules.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

from datasets.latents.table import About, has_encoder
from datasets.people.listing import GALLERY, QUERY, TRAIN, drawn_names
from datasets.people.market1501 import toy_crowd_record
from datasets.people.names import printable_name
from datasets.people.readers import address, read_split
from datasets.people.real_people import matched_names
from datasets.reid.sources import people_sha256
from datasets.runs.configuration import Origin
from passersby.errors import InputError
from passersby.options import Json
from tune.levels import GeneratedRun

CLEAN, LEAK, UNKNOWN = VERDICTS = ("clean", "leak", "unknown")
_MOST_ANCESTORS = 50
_OTHER_SOURCES = ("further", "singles", "donors")  # real pictures of a re-ID training beside "real"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The verdict on one object. what: the object ("generator", "encoder", ...); reason: the reason for the verdict."""

    what: str
    verdict: str
    reason: str


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The people that a sweep trains on and tests with, by their names in the data set.

    train, query, gallery: people without junk and distractors. toy_hash: the hash of the toy crowd's program, None for
    other data. test_paths: the paths of the test pictures, relative to the data set, as latents name them.
    fingerprints: those of the splits' listings (datasets/people/listing.py).
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
        """All people in query and gallery."""
        return self.query | self.gallery


def read_data_set(root: str | Path) -> DataSet:
    """The people of a data set.

    Raises InputError if a split is missing, and if a person is in both training and test splits: then every score would
    be wrong, with generated pictures and without.
    """
    splits = {split: read_split(root, split) for split in (TRAIN, QUERY, GALLERY)}
    people = {split: frozenset(listing.people.values()) for split, listing in splits.items()}
    shared = sorted(people[TRAIN] & people[QUERY])
    if shared:
        raise InputError(
            f"--data {root}: {len(shared):,} people are in both training and test splits, the first is {shared[0]!r}: "
            "give a data set whose query and gallery are other people"
        )
    toy = toy_crowd_record(Path(root)) if isinstance(address(root), Path) else None
    contents = (*splits[QUERY].files, *splits[GALLERY].files)
    relative = (printable_name(path.relative_to(root).as_posix()) for path in contents if _is_below(path, root))
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
    """The verdict of several findings: "leak" if one is a leak, else "unknown" if one is unknown, else "clean"."""
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in (LEAK, UNKNOWN) if verdict in verdicts), CLEAN)


def judge_network(name: str, record: Json, data: DataSet) -> list[Finding]:
    """Findings on a network's record, and on the records of the networks that it started from, one after the other."""
    trainings = list(trainings_behind(name, record))
    findings = [judge_training(label, training.get("trained_on"), data) for label, training in trainings]
    if len(trainings) >= _MOST_ANCESTORS:
        findings.append(Finding(name, UNKNOWN, f"it has more than {_MOST_ANCESTORS} trainings behind it"))
    return findings or [Finding(name, UNKNOWN, "no record says whom it was trained on")]


def trainings_behind(name: str, record: Json) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """(name for users, record) of a network, of the networks that it started from, and of those in their losses.

    A generator's record holds the whole record of the re-ID network of its loss (--identity-network of
    jobs/train_gan.py), {} where that file has none. An encoder's record only names the file.
    """
    for number, ancestor in enumerate(line_of(record)):
        label = name if number == 0 else f"{name}, started from a network"
        yield label, ancestor
        identity = ancestor.get("identity")
        if isinstance(identity, Mapping) and "record" in identity:
            for of_loss in list(line_of(identity["record"])) or [{}]:
                yield f"identity network of the {label}", of_loss


def line_of(record: Json) -> Iterator[Mapping[str, Json]]:
    """A network's record, then those of the networks that it started from; {} for a start without a record."""
    for _ in range(_MOST_ANCESTORS):
        if not isinstance(record, Mapping):
            return
        yield record
        start = record.get("transferred_from")
        if start is None:
            return
        # A start without a record is one more training, on unknown people.
        record = start.get("record") if isinstance(start, Mapping) else None
        record = record if isinstance(record, Mapping) else {}


def judge_training(name: str, trained_on: Json, data: DataSet) -> Finding:
    """The finding on one record "trained_on".

    It is the record of a generator (training/gan/run.py), or of a training on TrainingImages (encoders, re-ID
    networks), whose `real` lists data sets. Generated pictures of a re-ID network are of unknown networks.
    """
    if not isinstance(trained_on, Mapping):
        return Finding(name, UNKNOWN, "no record says whom it was trained on")
    parts = trained_on.get("real") if "real" in trained_on else [trained_on]
    if isinstance(parts, list) and "real" in trained_on:
        others = [trained_on.get(source, []) for source in _OTHER_SOURCES]
        parts = [*parts, *(part for source in others if isinstance(source, list) for part in source)]
    generated = [source for source in ("people", "variants") if trained_on.get(source) and "real" in trained_on]
    readable = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    if not isinstance(parts, list) or not parts or len(readable) < len(parts):
        return Finding(name, UNKNOWN, "its record of whom it was trained on cannot be read")
    findings = [_judge_part(name, part, data) for part in readable]
    if generated:
        findings.append(Finding(name, UNKNOWN, "it has seen generated pictures, and nothing says by which networks"))
    verdict = verdict_of(findings)
    return next(finding for finding in findings if finding.verdict == verdict)


def _judge_part(name: str, part: Mapping[str, Json], data: DataSet) -> Finding:
    data_name = str(part.get("name", "data of unknown name"))[:80]
    identities = part.get("identities")
    if isinstance(identities, Mapping):  # the record of a generator
        sha256, count = identities.get("sha256"), identities.get("count")
    else:
        sha256, count = part.get("sha256"), part.get("people")
    of = part.get("of")
    if isinstance(of, Mapping):  # the people among whom those of the part were chosen
        sha256, count = of.get("sha256"), of.get("people")
    toy_hash = toy_hash_of(part)
    if data.toy_hash is None and toy_hash is not None:
        return Finding(name, CLEAN, f"{data_name}: drawn people, none of whom is real")
    if data.toy_hash is not None and toy_hash == data.toy_hash:
        # People in a toy crowd's train split are never in another tree's test splits (datasets/toy_crowd/tree.py).
        if part.get("split", TRAIN) == TRAIN:
            return Finding(name, CLEAN, f"{data_name}: the train split of the same toy crowd")
        return Finding(name, LEAK, f"{data_name}: split {part.get('split')} of the same toy crowd")
    if data.toy_hash is not None and toy_hash is not None:
        return Finding(name, UNKNOWN, f"{data_name}: a toy crowd drawn by another version of the program")
    group = group_of(sha256, count, data, part.get("labelled"))
    if group == TRAIN:
        return Finding(name, CLEAN, f"{data_name}: {count:,} people, those of {data.name} train")
    if group is not None:
        return Finding(name, LEAK, f"{data_name}: {count:,} people, those of {data.name} {group}")
    return Finding(name, UNKNOWN, f"{data_name}: people who cannot be compared with those of {data.name}")


def toy_hash_of(part: Mapping[str, Json]) -> str | None:
    """The hash of the program that drew the people of a record; None if they were not drawn."""
    toy = part.get("toy_crowd")
    return str(toy.get("content_hash")) if isinstance(toy, Mapping) else None


def group_of(sha256: Json, count: Json, data: DataSet, labelled: Json = None) -> str | None:
    """The group of people in the data set that has this hash; None if there is none.

    The hash is that of the first `count` people of the group: the training of a generator excludes the last people, for
    validation. labelled: the record of the people whose labels it used; if they were drawn, none of them is excluded.
    """
    if not is_count(count) or not isinstance(sha256, str):
        return None
    groups = {TRAIN: data.train, "query and gallery": data.test, QUERY: data.query, GALLERY: data.gallery}
    groups["train, query and gallery"] = data.train | data.test
    for name, people in groups.items():
        if count <= len(people) and people_sha256(in_order(people, labelled)[:count]) == sha256:
            return name
    return None


def is_count(value: Json) -> TypeGuard[int]:
    """Whether a value of a record is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def in_order(people: Iterable[str], labelled: Json = None) -> list[str]:
    """People by number or name; first of all those who were drawn to be labelled."""
    people = set(people)
    numbers = all(name.isascii() and name.isdecimal() for name in people)
    ordered = sorted(people, key=int if numbers else None)
    if not isinstance(labelled, Mapping):
        return ordered
    count, draw = labelled.get("count"), labelled.get("draw")
    if not is_count(count) or not isinstance(draw, int) or isinstance(draw, bool):
        return ordered
    drawn = set(drawn_names(people, draw)[:count])
    return sorted(ordered, key=lambda name: name not in drawn)


def judge_origins(origins: Iterable[Origin], data: DataSet) -> Finding:
    """The finding on the real people whose latents a run uses, by the paths of their pictures and by their names."""
    origins = tuple(origins)
    part, test = "latents", [origin for origin in origins if origin.path in data.test_paths]
    if test:
        return Finding(part, LEAK, f"{len(test):,} of {len(origins):,} people are of query or gallery: {test[0].path}")
    names = [origin.name for origin in origins]
    train_names, test_names = matched_names(names, data.train), matched_names(names, data.test)
    strangers = [name for name in names if name not in train_names]
    if strangers and any(name in test_names for name in strangers):
        first = next(name for name in strangers if name in test_names)
        return Finding(part, LEAK, f"person {first!r} is one of query or gallery")
    if strangers:
        return Finding(part, UNKNOWN, f"{len(strangers):,} of {len(names):,} people are not in {data.name} train")
    return Finding(part, CLEAN, f"{len(names):,} people of {data.name} train")


def judge_latents(about: About, data: DataSet) -> list[Finding]:
    """Findings on the metadata of latents: whether they are of test people, and whom their networks were trained on."""
    findings = []
    if about.get("test_people") is not False:
        test_people = about.get("test_people")
        verdict, reason = (LEAK, "made of people tested with") if test_people else (UNKNOWN, "nothing says of whom")
        findings.append(Finding("latents", verdict, reason))
    records = about.get("records")
    records = records if isinstance(records, Mapping) else {}
    for part in ("encoder", "generator") if has_encoder(about) else ("generator",):
        name = "encoder" if part == "encoder" else "generator of the latents"
        findings += judge_network(name, records.get(part), data)
    return findings


def judge_run(run: GeneratedRun, latents_about: About | None, data: DataSet) -> list[Finding]:
    """Findings on a run. latents_about: `about` of the latents that the run uses, None if they are not available."""
    if run.plan is None:
        return [Finding("generator", UNKNOWN, f"{run.record['name']} is no run of jobs/generate.py")]
    configuration, record = run.plan.configuration, run.network
    if record.get("sha256") != configuration.network:
        record = None  # summary.json is of another network, or does not exist
    findings = judge_network("generator", record, data)
    if configuration.latents is not None:
        findings.append(judge_origins(configuration.origins[: run.plan.people], data))
        if latents_about is None:
            findings.append(Finding("encoder", UNKNOWN, "give --latents, whose record says whom it was trained on"))
        else:
            findings += judge_latents(latents_about, data)
    return findings


def refuse_leak(findings: Iterable[Finding], allowed: bool) -> None:
    """Raise InputError for the first leak, unless leaks are allowed."""
    leak = next((finding for finding in findings if finding.verdict == LEAK), None)
    if leak and not allowed:
        raise InputError(
            f"--generated: its {leak.what} has seen people that re-ID is tested with ({leak.reason}): scores would be "
            "too good; generate with networks trained on training people only, or give --allow-leak, which the report "
            "shows in red"
        )
