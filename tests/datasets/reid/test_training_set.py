"""The training set of a re-ID network: classes, sources, levels that hold each other, images set aside."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.people.image_source import open_images
from datasets.reid.sources import FURTHER, PEOPLE, REAL, SINGLES, VARIANTS, Labelled
from datasets.reid.training_set import load_training_images
from passersby.errors import InputError
from tests.helpers import export_runs


def folder(root: Path, people: dict[str, list[int]]) -> Path:
    """One folder a person; every picture has one value, by which it is known again."""
    for person, values in people.items():
        (root / person).mkdir(parents=True)
        for index, value in enumerate(values):
            cv2.imwrite(str(root / person / f"{index}.png"), np.full((32, 16, 3), value, np.uint8))
    return root


@pytest.fixture
def places(tmp_path):
    return {
        "real": folder(tmp_path / "real", {"0001": [10, 11, 12], "0002": [20, 21], "0003": [30]}),
        "people": folder(tmp_path / "one/run", {"0001": [110, 111], "0002": [120], "0005": [150, 151]}),
        "more": folder(tmp_path / "two/run", {"0001": [210]}),
        "variants": folder(tmp_path / "variants", {"1": [50, 51, 52], "0003": [60]}),
    }


def values_of(images: np.ndarray) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_classes_never_collide_and_sources_are_kept_apart(places):
    data = load_training_images(places["real"], [places["people"], places["more"]], [places["variants"]], 32, 16)
    names = ("0001", "0002", "0003", "run/0001", "run/0002", "run/0005", "run#2/0001")
    assert data.class_names == names
    assert data.real_classes == 3
    assert values_of(data.validation_images) == [10, 20]  # the first of everybody with two or more
    assert data.validation_classes.tolist() == [0, 1]
    seen = dict(
        zip(values_of(data.images), zip(data.classes.tolist(), data.sources.tolist(), strict=True), strict=True)
    )
    assert seen == {
        11: (0, REAL), 12: (0, REAL), 21: (1, REAL), 30: (2, REAL),
        110: (3, PEOPLE), 111: (3, PEOPLE), 120: (4, PEOPLE), 150: (5, PEOPLE), 151: (5, PEOPLE), 210: (6, PEOPLE),
        50: (0, VARIANTS), 51: (0, VARIANTS), 52: (0, VARIANTS), 60: (2, VARIANTS),
    }  # fmt: skip
    record = data.record
    assert [entry["people"] for entry in (*record["real"], *record["people"])] == [3, 3, 1]
    assert record["trained"] == {"real": 4, "people": 6, "variants": 4}


def test_levels_are_nested(places):
    """Two artificial people are among three; the first image of a person is among the first two."""
    few, more = (
        load_training_images(
            places["real"], [places["people"], places["more"]], [places["variants"]], 32, 16,
            most_people=people, most_variants=images,
        )
        for people, images in ((2, 1), (4, 2))
    )  # fmt: skip
    assert few.class_names == more.class_names[:5]
    assert set(values_of(few.images)) < set(values_of(more.images))
    assert len(more.class_names) == 7
    assert few.fingerprint != more.fingerprint


def test_without_validation_nothing_is_set_aside(places):
    data = load_training_images(places["real"], [], [], 32, 16, validation="none")
    assert values_of(data.images) == [10, 11, 12, 20, 21, 30]
    assert len(data.validation_images) == 0


def test_unreadable_images_are_noted(places):
    (places["real"] / "0001/1.png").write_bytes(b"no image")
    data = load_training_images(places["real"], [], [], 32, 16)
    assert 11 not in values_of(data.images)
    assert "1 of 6 images cannot be read and are left out: '0001/1.png'" in data.notes[-1]


def test_variants_of_strangers(places, tmp_path):
    strangers = folder(tmp_path / "strangers", {"0009": [1]})
    with pytest.raises(InputError, match=r"none of its 1 people \('0009'\) is a person of real"):
        load_training_images(places["real"], [], [strangers], 32, 16)
    some = folder(tmp_path / "some", {"0009": [1], "2": [77]})
    data = load_training_images(places["real"], [], [some], 32, 16)
    assert 77 in values_of(data.images)
    assert 1 not in values_of(data.images)
    assert "1 variants of 1 people who are not in real are left out: '0009'" in data.notes[-1]


def test_kept_images_of_a_run_are_people(tmp_path, places):
    export_runs.make_run(str(tmp_path / "people-run"), people=3, variants=4)
    data = load_training_images(places["real"], [tmp_path / "people-run"], [], 16, 8)
    assert data.class_names[3:] == ("people-run/0", "people-run/1")  # person 2 has no kept image
    assert (data.sources == PEOPLE).sum() == 2 * 3  # variant 1 of 4 does not pass
    assert data.record["people"][0]["people"] == 2


@pytest.fixture
def crowd(tmp_path):
    """Nine people with four pictures each; the tens of a picture's value are its person."""
    values = {f"{person:04d}": [10 * person + index for index in range(4)] for person in range(1, 10)}
    return folder(tmp_path / "crowd", values)


def people_of(images: np.ndarray) -> set[int]:
    return {value // 10 for value in values_of(images)}


def test_labelled_people_are_those_of_every_job(crowd):
    """The same people, by their names, as a generator's training with the same options has (image_source.py)."""
    data = load_training_images(crowd, height=32, width=16, labelled=Labelled(3, 7))
    source = open_images(crowd, 0, (3, 7))
    assert people_of(data.images) == set(source.labelled.identities)
    assert len(data.class_names) == data.real_classes == 3
    labelled = data.record["real"][0]["labelled"]
    assert labelled == source.record["labelled"]
    more = load_training_images(crowd, height=32, width=16, labelled=Labelled(5, 7))
    assert people_of(more.images) > people_of(data.images)
    other = load_training_images(crowd, height=32, width=16, labelled=Labelled(3, 8))
    assert people_of(other.images) != people_of(data.images)
    assert len({data.fingerprint, more.fingerprint, other.fingerprint}) == 3


def test_further_people_and_single_pictures_are_sources_of_their_own(crowd, places):
    labelled = Labelled(3, 7, further=2, singles=5)
    data = load_training_images(crowd, [places["people"]], height=32, width=16, labelled=labelled)
    by_source = {kind: data.images[data.sources == kind] for kind in (REAL, FURTHER, SINGLES, PEOPLE)}
    first = load_training_images(crowd, height=32, width=16, labelled=Labelled(3, 7))
    five = load_training_images(crowd, height=32, width=16, labelled=Labelled(5, 7))
    assert people_of(by_source[REAL]) == people_of(first.images)
    assert people_of(by_source[FURTHER]) == people_of(five.images) - people_of(first.images)
    assert len(by_source[FURTHER]) == 8
    assert len(by_source[SINGLES]) == 5
    assert not people_of(by_source[SINGLES]) & people_of(five.images)
    assert len(np.unique(data.classes[data.sources == SINGLES])) == 5
    assert data.real_classes == 3 + 2 + 5
    assert all(name.startswith("single/") for name in data.class_names[5:10])
    assert all(name.startswith("run/") for name in data.class_names[10:])
    assert data.record["trained"] == {"real": 9, "people": 5, "variants": 0, "further": 8, "singles": 5}
    again = load_training_images(crowd, height=32, width=16, labelled=Labelled(3, 7, singles=7, further=2))
    assert set(values_of(by_source[SINGLES])) < set(values_of(again.images[again.sources == SINGLES]))


def test_donors_are_the_unlabelled_pictures_or_those_that_are_given(crowd, places):
    data = load_training_images(crowd, height=32, width=16, labelled=Labelled(3, 7, further=2), donors=())
    assert people_of(data.donors) == set(range(1, 10)) - people_of(data.images[data.sources == REAL])
    assert len(data.donors) == 24
    few = load_training_images(crowd, height=32, width=16, labelled=Labelled(3, 7), donors=(), most_donors=5)
    assert set(values_of(few.donors)) < set(values_of(data.donors))
    assert len(few.donors) == 5
    everybody = load_training_images(crowd, height=32, width=16, donors=())
    assert len(everybody.donors) == 36
    given = load_training_images(crowd, height=32, width=16, donors=[places["people"], places["more"]])
    assert sorted(values_of(given.donors)) == [110, 111, 120, 150, 151, 210]
    assert [entry["name"] for entry in given.record["donors"]] == [given.record["donors"][0]["name"]] * 2
    assert "donors" not in load_training_images(crowd, height=32, width=16).record
    assert len({x.fingerprint for x in (data, few, everybody, given)}) == 4


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        (Labelled(10), "--labelled-people 10: .*9 people"),
        (Labelled(7, further=3), "--further-people 3: .*2 people beside the 7"),
        (Labelled(7, further=1, singles=5), "--single-pictures 5: .*4 pictures"),
    ],
)
def test_more_than_the_data_have_is_refused(crowd, labelled, message):
    with pytest.raises(InputError, match=message):
        load_training_images(crowd, height=32, width=16, labelled=labelled)
