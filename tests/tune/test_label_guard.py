"""The label guard: hand cases of whose labels a record says a network knows, each with the verdict that follows."""

import pytest

from datasets.people.listing import drawn_names, identities_sha256
from datasets.reid.sources import Labelled, people_sha256
from passersby.errors import InputError
from tune.label_guard import allowed_people, judge_labels, refuse_label_leak
from tune.leak_guard import CLEAN, LEAK, UNKNOWN, DataSet, Finding, judge_training, verdict_of

PEOPLE = range(1, 31)
TEST = frozenset({"0101", "0102"})
MARKET = DataSet("market", frozenset(f"{person:04d}" for person in PEOPLE), TEST, TEST)
TOY = DataSet("crowd", MARKET.train, TEST, TEST, toy_hash="drawn-by-1")
DRAWN = drawn_names(MARKET.train, 4)
TEN = allowed_people(MARKET, Labelled(10, 4))


def labelled(names, **more):
    return {"count": len(names), "sha256": people_sha256(names), "images": 9} | more


def generator(data=MARKET, **more):
    people = {"count": len(PEOPLE), "sha256": identities_sha256(PEOPLE)}
    toy = {} if data.toy_hash is None else {"toy_crowd": {"content_hash": data.toy_hash}}
    record = {"name": "m", "split": "train", "identities": people} | toy
    return {"trained_on": record | more, "configuration": {"condition": "none"}}


def reid(names, more=None, **drawn):
    part = {"name": "m train", "people": len(names), "sha256": people_sha256(names)}
    part |= {"labelled": labelled(names, **drawn)} if drawn else {}
    return {"trained_on": {"real": [part], "people": [], "variants": []} | (more or {})}


def verdict(record, allowed=TEN, data=MARKET):
    return verdict_of(judge_labels("network", record, data, allowed))


def test_the_labelled_people_are_those_of_the_draw():
    assert set(DRAWN[:10]) == TEN
    assert allowed_people(MARKET, Labelled()) == MARKET.train
    with pytest.raises(InputError, match="--labelled-people 31: market has 30"):
        allowed_people(MARKET, Labelled(31))


@pytest.mark.parametrize("data", [MARKET, TOY])
@pytest.mark.parametrize(
    ("names", "draw", "expected"),
    [
        (DRAWN[:10], 4, CLEAN),
        (DRAWN[:6], 4, CLEAN),  # draws are nested
        (DRAWN[:11], 4, LEAK),
        (drawn_names(MARKET.train, 5)[:10], 5, LEAK),  # as many people, but others
        (DRAWN[:10], 5, UNKNOWN),  # not the people that this draw gives
        (sorted(MARKET.train), None, LEAK),  # pairs of everybody
        (sorted(MARKET.train)[:25], None, LEAK),  # the last ones set aside
        (sorted(TEST), None, LEAK),
        (DRAWN[3:9], None, UNKNOWN),
    ],
)
def test_a_generator_knows_the_labels_that_its_record_names(data, names, draw, expected):
    assert verdict(generator(data, labelled=labelled(names, draw=draw)), data=data) == expected


def test_one_label_too_many_is_counted():
    (finding,) = judge_labels("generator", generator(labelled=labelled(DRAWN[:13], draw=4)), MARKET, TEN)
    assert finding.reason == "m: labels of 13 people, 3 of whom are not among the 10 labelled people of market"


def test_where_everybody_is_labelled_all_labels_of_train_are_clean():
    everybody = allowed_people(MARKET, Labelled())
    for names, draw in ((DRAWN[:10], 4), (sorted(MARKET.train), None)):
        assert verdict(generator(labelled=labelled(names, draw=draw)), everybody) == CLEAN
    assert verdict(generator(labelled=labelled(sorted(TEST), draw=None)), everybody) == LEAK


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ({"condition": "none"}, CLEAN),
        ({"condition": "camera"}, CLEAN),
        ({"condition": "cluster"}, LEAK),  # pictures of one person are in one group: of everybody
        ({"condition": "dataset"}, UNKNOWN),
        ({"condition": "none", "pairs": True}, UNKNOWN),  # a record of pairs has to name the people
        ({}, UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_a_generator_without_labelled_people(configuration, expected):
    assert verdict(generator() | {"configuration": configuration}) == expected


def test_labels_of_other_data_sets_are_named_and_clean():
    drawn = generator(TOY, labelled=labelled(DRAWN, draw=1))
    (finding,) = judge_labels("generator", drawn, MARKET, TEN)
    assert (finding.verdict, finding.reason) == (CLEAN, "m: drawn people, labels of another data set (30 people)")
    (finding,) = judge_labels("generator", generator(labelled=labelled(DRAWN, draw=1)), TOY, TEN)
    assert (finding.verdict, finding.reason) == (CLEAN, "m: photographs, labels of another data set (30 people)")


def test_a_re_id_network_knows_the_labels_of_all_its_people():
    assert verdict(reid(DRAWN[:10], draw=4)) == CLEAN
    assert verdict(reid(DRAWN[:12], draw=4)) == LEAK
    assert verdict(reid(sorted(MARKET.train))) == LEAK
    further = {"further": reid(DRAWN[10:14], draw=4, after=10)["trained_on"]["real"]}
    assert verdict(reid(DRAWN[:10], further, draw=4)) == LEAK
    assert verdict(reid(DRAWN[:10], further, draw=4), allowed_people(MARKET, Labelled(14, 4))) == CLEAN
    # Single pictures and donors were used without labels.
    others = {name: reid(sorted(MARKET.train))["trained_on"]["real"] for name in ("singles", "donors")}
    assert verdict(reid(DRAWN[:10], others, draw=4)) == CLEAN
    assert verdict(reid(DRAWN[:10], {"people": [{"name": "run"}]}, draw=4)) == UNKNOWN


def test_a_network_knows_the_labels_of_its_start():
    clean, leak = reid(DRAWN[:10], draw=4), reid(sorted(MARKET.train))
    assert verdict(clean | {"transferred_from": {"record": clean}}) == CLEAN
    assert verdict(clean | {"transferred_from": {"record": leak}}) == LEAK
    assert verdict(clean | {"transferred_from": {"file": "someone's.pth"}}) == UNKNOWN


def test_a_generator_knows_the_labels_of_the_identity_network_of_its_loss():
    own = generator(labelled=labelled(DRAWN[:10], draw=4))
    clean, leak = reid(DRAWN[:10], draw=4), reid(sorted(MARKET.train))
    for record, expected in ((clean, CLEAN), (leak, LEAK), (clean | {"transferred_from": {"record": leak}}, LEAK)):
        with_loss = own | {"identity": {"name": "re-ID", "sha256": "ab" * 32, "record": record}}
        assert verdict(with_loss) == expected
        assert verdict(own | {"transferred_from": {"record": with_loss}}) == expected
    for record in ({}, None, "unknown"):
        assert verdict(own | {"identity": {"record": record}}) == UNKNOWN
    (_, finding) = judge_labels("generator", own | {"identity": {"record": leak}}, MARKET, TEN)
    assert finding.what == "identity network of the generator"


@pytest.mark.parametrize(
    "record",
    [None, "unknown", {}, {"trained_on": "unknown"}, {"trained_on": {"real": "m"}}, {"trained_on": {"real": ["m"]}},
     {"trained_on": {"real": []}}, {"trained_on": {"real": [{"people": "4", "sha256": 3}]}},
     generator(labelled=7), generator(labelled={"count": True, "sha256": "x"}),
     generator(labelled={"count": 3, "sha256": "x", "draw": [1]}), reid(DRAWN[:3], draw={"a": 1})],
)  # fmt: skip
def test_without_a_readable_record_nothing_is_known(record):
    assert verdict(record) == UNKNOWN


def test_the_leak_guard_follows_all_pictures_of_a_re_id_network():
    """Subsets of the training people have no hash of their own to compare: their record names the whole."""
    whole = {"people": len(PEOPLE), "sha256": people_sha256(MARKET.train)}
    test = {"people": len(TEST), "sha256": people_sha256(TEST)}

    def part(of):
        return {"name": "m", "people": 3, "sha256": "of three people", "of": of}

    real = reid(DRAWN[:10], draw=4)["trained_on"]
    for source in ("further", "singles", "donors"):
        assert judge_training("start", real | {source: [part(whole)]}, MARKET).verdict == CLEAN
        assert judge_training("start", real | {source: [part(test)]}, MARKET).verdict == LEAK
    assert judge_training("start", real | {"people": [{"name": "run"}]}, MARKET).verdict == UNKNOWN


def test_a_leak_is_refused_unless_it_is_allowed():
    findings = [Finding("generator", CLEAN, ""), Finding("judge of the filters", LEAK, "labels of 30 people")]
    with pytest.raises(InputError, match=r"judge of the filters knows more labels .*labels of 30 people.*--allow-leak"):
        refuse_label_leak(findings, False)
    refuse_label_leak(findings, True)
    refuse_label_leak([Finding("generator", UNKNOWN, "")], False)
