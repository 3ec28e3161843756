"""The leak guard: hand cases of what records say, each with the verdict that follows from it."""

import pytest

from datasets.people.listing import drawn_names, identities_sha256
from datasets.runs.configuration import Origin
from passersby.errors import InputError
from tune.leak_guard import (
    CLEAN,
    LEAK,
    UNKNOWN,
    DataSet,
    judge_latents,
    judge_network,
    judge_origins,
    judge_training,
    refuse_leak,
    verdict_of,
)  # fmt: skip

TRAIN, QUERY, GALLERY = (2, 7, 10, 30), (1, 3), (1, 3, 50)
MARKET = DataSet(
    "market",
    *(frozenset(f"{person:04d}" for person in people) for people in (TRAIN, QUERY, GALLERY)),
    test_paths=frozenset({"query/0001_c1s1_000001_00.jpg"}),
)
TOY = DataSet("crowd", MARKET.train, MARKET.query, MARKET.gallery, toy_hash="drawn-by-1")


def generator(people, **more):
    return {
        "name": "m",
        "split": "train",
        "identities": {"count": len(people), "sha256": identities_sha256(people)},
    } | more


def network(people, **more):
    return {"trained_on": generator(people)} | more


@pytest.mark.parametrize(
    ("people", "verdict"),
    [
        (TRAIN, CLEAN),
        ((2, 7, 10), CLEAN),  # the last person set aside for validation
        ((2, 7, 30), UNKNOWN),  # no start of the people in order
        (QUERY, LEAK),
        (GALLERY, LEAK),
        ((*TRAIN, *GALLERY), LEAK),
        ((4, 5), UNKNOWN),
    ],
)
def test_people_are_known_by_their_hash(people, verdict):
    assert judge_training("generator", generator(people), MARKET).verdict == verdict


def test_people_drawn_to_be_labelled_are_not_among_those_set_aside():
    # Of seed 0 the two labelled people are 7 and 30: so the last of the others, 10, was set aside.
    assert drawn_names(MARKET.train, 0)[:2] == ["0030", "0007"]
    record = generator((2, 7, 30), labelled={"count": 2, "draw": 0, "sha256": identities_sha256((7, 30)), "images": 9})
    assert judge_training("generator", record, MARKET).verdict == CLEAN
    assert judge_training("generator", generator((2, 7, 30)), MARKET).verdict == UNKNOWN
    everybody = generator((2, 7, 10), labelled={"count": 3, "draw": None, "sha256": "x", "images": 9})
    assert judge_training("generator", everybody, MARKET).verdict == CLEAN
    for broken in (7, {"count": "2", "draw": 0}, {"count": 2, "draw": True}, {"count": 99, "draw": 0}):
        assert judge_training("generator", generator(TRAIN, labelled=broken), MARKET).verdict == CLEAN


@pytest.mark.parametrize(
    "trained_on",
    [None, "unknown", "toy crowd", [], {}, {"identities": None}, {"identities": {"count": "4", "sha256": 3}},
     {"real": []}, {"real": ["x"]}, {"identities": {"count": -1, "sha256": identities_sha256(TRAIN)}}],
)  # fmt: skip
def test_without_a_record_nothing_is_known(trained_on):
    assert judge_training("generator", trained_on, MARKET).verdict == UNKNOWN


@pytest.mark.parametrize(
    ("toy", "split", "data", "verdict"),
    [
        ("drawn-by-1", "train", TOY, CLEAN),  # of any size: trains and tests of a crowd never share a person
        ("drawn-by-1", "query", TOY, LEAK),
        ("drawn-by-2", "train", TOY, UNKNOWN),
        ("drawn-by-1", "train", MARKET, CLEAN),  # drawn people are nobody of Market-1501
    ],
)
def test_toy_crowds_are_known_by_the_program_that_drew_them(toy, split, data, verdict):
    record = generator((800, 801), split=split, toy_crowd={"content_hash": toy, "version": "1"})
    assert judge_training("generator", record, data).verdict == verdict


def test_an_encoder_s_record_lists_its_data_sets():
    good = {"name": "m train", "people": 4, "sha256": identities_sha256(TRAIN)}
    bad = {"name": "m query", "people": 2, "sha256": identities_sha256(QUERY)}
    assert judge_training("encoder", {"real": [good]}, MARKET).verdict == CLEAN
    found = judge_training("encoder", {"real": [good, bad]}, MARKET)
    assert found.verdict == LEAK
    assert "2 people, those of market query" in found.reason


def test_a_network_has_seen_what_its_start_has_seen():
    clean = network(TRAIN, transferred_from={"record": network(TRAIN)})
    assert verdict_of(judge_network("generator", clean, MARKET)) == CLEAN
    leak = network(TRAIN, transferred_from={"record": network(TRAIN, transferred_from={"record": network(GALLERY)})})
    assert verdict_of(judge_network("generator", leak, MARKET)) == LEAK
    unknown = network(TRAIN, transferred_from={"file": "someone's.pkl"})
    assert verdict_of(judge_network("generator", unknown, MARKET)) == UNKNOWN
    endless = network(TRAIN)
    endless["transferred_from"] = {"record": endless}
    assert verdict_of(judge_network("generator", endless, MARKET)) == UNKNOWN
    assert verdict_of(judge_network("generator", None, MARKET)) == UNKNOWN


def test_a_generator_has_seen_what_the_identity_network_of_its_loss_has_seen():
    own = network(TRAIN)
    for people, expected in ((TRAIN, CLEAN), (QUERY, LEAK)):
        judge = {"trained_on": {"real": [{"name": "m", "people": len(people), "sha256": identities_sha256(people)}]}}
        with_loss = own | {"identity": {"name": "re-ID", "sha256": "ab" * 32, "record": judge}}
        assert verdict_of(judge_network("generator", with_loss, MARKET)) == expected
        assert (
            verdict_of(judge_network("generator", own | {"transferred_from": {"record": with_loss}}, MARKET))
            == expected
        )
    assert verdict_of(judge_network("generator", own | {"identity": {"record": {}}}, MARKET)) == UNKNOWN


@pytest.mark.parametrize(
    ("names", "path", "verdict"),
    [
        (["2", "0007"], "bounding_box_train/a.jpg", CLEAN),  # a run may write 2 where the tree writes 0002
        (["2", "3"], "bounding_box_train/a.jpg", LEAK),
        (["2", "99"], "bounding_box_train/a.jpg", UNKNOWN),
        (["2"], "query/0001_c1s1_000001_00.jpg", LEAK),
    ],
)
def test_latents_name_their_people(names, path, verdict):
    origins = [Origin(name, path, 1, 2) for name in names]
    assert judge_origins(origins, MARKET).verdict == verdict


def test_latents_say_that_they_are_of_test_people():
    records = {"encoder": {"trained_on": {"real": [{"people": 4, "sha256": identities_sha256(TRAIN)}]}}}
    records["generator"] = network(TRAIN)
    assert verdict_of(judge_latents({"test_people": False, "records": records}, MARKET)) == CLEAN
    assert verdict_of(judge_latents({"test_people": True, "records": records}, MARKET)) == LEAK
    assert verdict_of(judge_latents({"records": records}, MARKET)) == UNKNOWN
    assert verdict_of(judge_latents({"test_people": False}, MARKET)) == UNKNOWN


def test_latents_that_were_found_without_an_encoder_are_judged_by_their_generator():
    about = {"test_people": False, "encoder": None, "records": {"generator": network(TRAIN)}}
    assert [finding.what for finding in judge_latents(about, MARKET)] == ["generator of the latents"]
    assert verdict_of(judge_latents(about, MARKET)) == CLEAN
    assert verdict_of(judge_latents(about | {"records": {"generator": network(GALLERY)}}, MARKET)) == LEAK
    assert verdict_of(judge_latents({**about, "encoder": {"file": "e"}}, MARKET)) == UNKNOWN


def test_a_leak_is_refused_in_one_line_unless_allowed():
    findings = judge_network("generator", network(QUERY), MARKET)
    with pytest.raises(InputError, match=r"^--generated: its generator has seen people .* give --allow-leak") as caught:
        refuse_leak(findings, allowed=False)
    assert "\n" not in str(caught.value)
    refuse_leak(findings, allowed=True)
    refuse_leak(judge_network("generator", None, MARKET), allowed=False)
