"""Who of a run is who of the real people."""

import numpy as np
import pytest

from datasets.people.listing import Listing
from datasets.people.real_people import matched_names, real_people
from passersby.errors import InputError


def listing(people: dict[int, str], identities: list[int]) -> Listing:
    names = tuple(f"{place}.jpg" for place in range(len(identities)))
    cameras = np.full(len(identities), -1)
    return Listing("m train", (b"",) * len(names), np.array(identities), cameras, names, people)


MARKET = listing({2: "0002", 7: "0007", 9: "anna"}, [2, 2, 7, 9, 0, -1])
FEATURES = np.arange(1, 19, dtype=np.float32).reshape(6, 3)


def test_people_are_matched_as_they_are_called_then_by_number():
    real = real_people(MARKET, FEATURES, ["7", "anna", "0002"])
    assert real.persons == {0: 7, 1: 9, 2: 2}
    assert real.notes == ()
    assert real.name == "m train"


def test_junk_and_distractors_are_nobody_and_features_get_length_one():
    real = real_people(MARKET, FEATURES, None)
    assert real.identities.tolist() == [2, 2, 7, 9]
    assert real.pictures == ("0.jpg", "1.jpg", "2.jpg", "3.jpg")
    assert real.persons == {}
    assert real.features.dtype == np.float32
    expected = FEATURES[:4] / np.sqrt((FEATURES[:4] ** 2).sum(1))[:, None]
    np.testing.assert_allclose(real.features, expected, rtol=1e-6)


def test_people_without_pictures_are_counted_in_a_note():
    real = real_people(MARKET, FEATURES, ["0002", "12", "berta"])
    assert real.persons == {0: 2, 1: None, 2: None}
    assert real.notes == (
        "m train: no picture of 2 of the run's 3 people ('12', 'berta'): their variants have no identity_cosine",
    )


def test_of_two_people_of_the_same_number_nobody_knows_which():
    assert matched_names(["7"], ["07", "007"]) == {}
    assert matched_names(["007"], ["07", "007"]) == {"007": "007"}
    assert matched_names(["٧", "-7", "9" * 20], ["7"]) == {}  # no numbers, or beyond any


@pytest.mark.parametrize(
    ("people", "features", "names", "message"),
    [
        (MARKET, FEATURES[:5], None, "5 features of 6 images"),
        (MARKET, FEATURES * np.nan, None, "not finite"),
        (MARKET, FEATURES, ["41", "42"], r"none of the run's 2 people \('41', '42'\) is there: give with --real"),
        (listing({}, [0, -1]), FEATURES[:2], None, "none of its 2 images is of a person"),
    ],
)
def test_what_cannot_be_compared_is_refused(people, features, names, message):
    with pytest.raises(InputError, match=message):
        real_people(people, features, names)


def test_features_of_another_network_are_refused():
    real = real_people(MARKET, FEATURES, None)
    real.check(3)
    with pytest.raises(InputError, match="3 features, the network gives 512"):
        real.check(512)
