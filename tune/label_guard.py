"""The label guard: whose identity labels do the networks behind a sweep's pictures know?

Trainings that may use the labels of N people only are compared fairly with pictures of a generator only if nothing
behind these pictures knows more: no generator, encoder, filtering judge or start network. There are three verdicts, as
in the leak guard (tune/leak_guard.py): "clean", "leak" and "unknown". docs/sweeps.md states the rules.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from datasets.latents.table import About, has_encoder
from datasets.people.listing import drawn_names
from datasets.reid.sources import Labelled, people_sha256
from passersby.errors import InputError
from passersby.options import Json
from passersby.reid.checkpoint import load_judge
from tune.leak_guard import (
    CLEAN,
    LEAK,
    UNKNOWN,
    DataSet,
    Finding,
    group_of,
    in_order,
    is_count,
    line_of,
    toy_hash_of,
    trainings_behind,
)
from tune.levels import GeneratedRun

NO_LABELS = ("none", "camera")  # conditions of a generator that say nothing about who people are
_SOURCES = ("real", "further")  # in the record of a re-ID network: the pictures whose identity labels it used


def allowed_people(data: DataSet, labelled: Labelled) -> frozenset[str]:
    """The names of the people whose labels a training of the sweep may use; all people of train without a number."""
    if labelled.people is None:
        return data.train
    if labelled.people > len(data.train):
        raise InputError(
            f"--labelled-people {labelled.people}: {data.name} has {len(data.train)} people to train on: give fewer"
        )
    return frozenset(drawn_names(data.train, labelled.draw)[: labelled.people])


def judge_labels(name: str, record: Json, data: DataSet, allowed: frozenset[str]) -> list[Finding]:
    """Findings on the labels that a network knows, those that it started from, and those in their losses.

    record: of a generator, or of a re-ID network. allowed: names of people (`allowed_people`).
    """
    findings = []
    for label, training in trainings_behind(name, record):
        findings += _judge_training(label, training, data, allowed)
    return findings or [Finding(name, UNKNOWN, "no record says whose labels it was trained with")]


def judge_run_labels(
    run: GeneratedRun, about: About | None, networks: Mapping[str, Json], data: DataSet, allowed: frozenset[str]
) -> list[Finding]:
    """Findings on the networks behind a run: its generator, the encoder of its latents, the judge of its filters.

    about: that of the latents which the run uses, None if they are not available. networks: the records of re-ID
    networks by the sha256 of their files (`read_networks`).
    """
    if run.plan is None:
        return [Finding("generator", UNKNOWN, f"{run.record['name']} is no run of jobs/generate.py")]
    configuration, record = run.plan.configuration, run.network
    if record.get("sha256") != configuration.network:
        record = None
    findings = judge_labels("generator", record, data, allowed)
    if configuration.identity is not None:
        findings += _judge_file("judge of the filters", configuration.identity, networks, data, allowed)
    if configuration.latents is not None:
        findings += _judge_latents(about, networks, data, allowed)
    return findings


def read_networks(paths: Sequence[str | Path]) -> dict[str, Json]:
    """sha256 of a re-ID network's file -> its record. Raises InputError for a file that is no such network."""
    loaded = [load_judge(path) for path in paths]
    return {network.sha256: network.record for network in loaded}


def refuse_label_leak(findings: Iterable[Finding], allowed: bool) -> None:
    """Raise InputError for the first leak of labels, unless leaks are allowed."""
    leak = next((finding for finding in findings if finding.verdict == LEAK), None)
    if leak and not allowed:
        raise InputError(
            f"--labelled-people: the {leak.what} knows more labels than the trainings ({leak.reason}): the comparison "
            "would not be fair; use networks that were trained with the labels of the same people, or give "
            "--allow-leak, which the report shows in red"
        )


def _judge_latents(
    about: About | None, networks: Mapping[str, Json], data: DataSet, allowed: frozenset[str]
) -> list[Finding]:
    if about is None:
        return [Finding("encoder", UNKNOWN, "give --latents, whose record says which networks it was trained with")]
    records = about.get("records")
    records = records if isinstance(records, Mapping) else {}
    encoder = records.get("encoder")
    findings = judge_labels("generator of the latents", records.get("generator"), data, allowed)
    for ancestor in (list(line_of(encoder)) or [None]) if has_encoder(about) else ():
        if not isinstance(ancestor, Mapping) or "identity" not in ancestor:
            findings.append(
                Finding("encoder", UNKNOWN, "no record says whether it was trained with an identity network")
            )
        elif ancestor["identity"] is None:
            findings.append(Finding("encoder", CLEAN, "it was trained without identity labels"))
        else:
            identity = ancestor["identity"]
            sha256 = identity.get("sha256") if isinstance(identity, Mapping) else None
            findings += _judge_file("identity network of the encoder", sha256, networks, data, allowed)
    return findings


def _judge_file(
    name: str, sha256: Json, networks: Mapping[str, Json], data: DataSet, allowed: frozenset[str]
) -> list[Finding]:
    if not isinstance(sha256, str) or sha256 not in networks:
        return [Finding(name, UNKNOWN, f"give its file with --networks: sha256 {str(sha256)[:12]}")]
    return judge_labels(name, networks[sha256], data, allowed)


def _judge_training(name: str, record: Mapping[str, Json], data: DataSet, allowed: frozenset[str]) -> list[Finding]:
    trained_on, configuration = record.get("trained_on"), record.get("configuration")
    configuration = configuration if isinstance(configuration, Mapping) else {}
    if not isinstance(trained_on, Mapping):
        return [Finding(name, UNKNOWN, "no record says whose labels it was trained with")]
    if "real" in trained_on:
        return _judge_reid(name, trained_on, data, allowed)
    if "labelled" in trained_on:
        return [_judge_people(name, trained_on, trained_on["labelled"], data, allowed)]
    condition = configuration.get("condition")
    if configuration.get("pairs") or not isinstance(condition, str):
        return [Finding(name, UNKNOWN, "its record does not say whether it used identity labels")]
    if condition in NO_LABELS:
        return [Finding(name, CLEAN, "it was trained without identity labels")]
    if condition == "cluster":  # groups of people: all pictures of one person are in one group
        return [_judge_people(name, trained_on, trained_on.get("identities"), data, allowed)]
    return [Finding(name, UNKNOWN, f"condition {condition[:20]}: nothing says what its labels mean")]


def _judge_reid(name: str, trained_on: Mapping[str, Json], data: DataSet, allowed: frozenset[str]) -> list[Finding]:
    """Findings on a re-ID network, which is trained with the labels of all its people."""
    findings = []
    for source in _SOURCES:
        parts = trained_on.get(source, [])
        readable = [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
        if not isinstance(parts, list) or len(readable) < len(parts):
            return [Finding(name, UNKNOWN, "its record of whom it was trained on cannot be read")]
        for part in readable:
            drawn = part.get("labelled")
            people = drawn or {"count": part.get("people"), "sha256": part.get("sha256")}
            findings.append(_judge_people(name, part, people, data, allowed))
    if trained_on.get("people") or trained_on.get("variants"):
        findings.append(Finding(name, UNKNOWN, "it has seen generated pictures, and nothing says by which networks"))
    return findings or [Finding(name, UNKNOWN, "its record names no people")]


def _judge_people(name: str, part: Mapping[str, Json], people: Json, data: DataSet, allowed: frozenset[str]) -> Finding:
    """The finding on a set of people whose labels were used: {"count", "sha256"}, and "draw" where they were drawn."""
    data_name = str(part.get("name", "data of unknown name"))[:80]
    people = people if isinstance(people, Mapping) else {}
    count, sha256, draw = people.get("count"), people.get("sha256"), people.get("draw")
    if not is_count(count) or not isinstance(sha256, str):
        return Finding(name, UNKNOWN, f"{data_name}: its record does not say whose labels were used")
    toy_hash = toy_hash_of(part)
    if (toy_hash is None) != (data.toy_hash is None):
        kind = "photographs" if toy_hash is None else "drawn people"
        return Finding(name, CLEAN, f"{data_name}: {kind}, labels of another data set ({count:,} people)")
    labelled = _named(count, sha256, draw, people.get("after"), data)
    if labelled is None:
        group = group_of(sha256, count, data)
        if group is not None:  # query, gallery, or everybody
            return Finding(name, LEAK, f"{data_name}: labels of {count:,} people, those of {data.name} {group}")
        return Finding(name, UNKNOWN, f"{data_name}: {count:,} people who cannot be compared with {data.name} train")
    more = len(labelled - allowed)
    among = f"the {len(allowed):,} labelled people of {data.name}"
    if more:
        return Finding(name, LEAK, f"{data_name}: labels of {count:,} people, {more:,} of whom are not among {among}")
    return Finding(name, CLEAN, f"{data_name}: labels of {count:,} people, all among {among}")


def _named(count: int, sha256: str, draw: Json, after: Json, data: DataSet) -> frozenset[str] | None:
    """The people of train that have this hash, by their names: the drawn ones, or else the first; None if unknown."""
    orders = [in_order(data.train)]
    if isinstance(draw, int) and not isinstance(draw, bool):
        orders.insert(0, drawn_names(data.train, draw)[after if is_count(after) else 0 :])
    for names in orders:
        if count <= len(names) and people_sha256(names[:count]) == sha256:
            return frozenset(names[:count])
    return None
