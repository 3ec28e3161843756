"""Near-copies and doubles of finished runs, against counts by hand. Without Ray."""

import itertools
import json

import numpy as np
import pytest
import torch

from actors.identity_scorer import IdentityScorer
from datasets.people.real_people import RealPeople
from datasets.runs.run import Run, shard_name
from passersby.errors import InputError
from pipeline.copies import DOUBLE_COSINE, privacy
from reporting.run.identity import PRIVACY, PRIVACY_SHEET, privacy_lines
from tests.helpers import identity_runs as runs


@pytest.fixture(scope="module")
def network():
    threads = torch.get_num_threads()
    yield runs.tiny_network()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def real(network) -> RealPeople:
    return runs.compared_with(network)


def people(count: int) -> list[list[np.ndarray | None]]:
    return [[runs.picture(1000 + 10 * person + variant) for variant in range(3)] for person in range(count)]


def cosines(network, first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
    """[len(first), len(second)] float64, each image by itself."""
    features = [
        np.concatenate([network(image[None]) for image in images]).astype(np.float64) for images in (first, second)
    ]
    return features[0] @ features[1].T


def test_near_copies_are_counted_and_the_nearest_are_named(tmp_path, network, real):
    images = people(8)
    images[3][1] = runs.picture(5)  # a training picture of person 12
    images[4][0] = None
    output, plan = runs.make_run(str(tmp_path), images, IdentityScorer(network, real))
    found = privacy(Run(output, plan), network, real, "cpu", runs.real_listing())
    made = [image for person in images for image in person if image is not None]
    known = [runs.picture(seed) for seeds in runs.REAL_SEEDS.values() for seed in seeds]
    nearest = cosines(network, made, known).max(axis=1)
    copies = found["near_copies"]
    # The default: of 8 real pictures at least one is as like a picture of somebody else.
    among = cosines(network, known, known)
    whose = np.repeat(list(runs.REAL_SEEDS), 2)
    among[whose[:, None] == whose] = -1
    assert copies["threshold"] == pytest.approx(among.max(), abs=1e-6)
    assert (copies["scored"], copies["count"]) == (23, int((nearest >= copies["threshold"]).sum()))
    assert copies["share"] == copies["count"] / 23
    assert copies["chosen"] == "1% of real pictures are as like a picture of somebody else"
    first = found["nearest"][0]
    assert (first["person"], first["variant"], first["name"], first["picture"]) == (3, 1, "0012", "train/0012_5.png")
    assert first["cosine"] == pytest.approx(1, abs=1e-6)
    assert [entry["cosine"] for entry in found["nearest"]] == sorted(
        (e["cosine"] for e in found["nearest"]), reverse=True
    )
    assert len({entry["person"] for entry in found["nearest"]}) == 8
    assert found["real"] == {"name": "toys train", "pictures": 8, "people": 4}
    assert found["network"] == "ab" * 32
    assert json.loads(output.read(PRIVACY)) == found
    assert output.read(PRIVACY_SHEET).startswith(b"\x89PNG")
    strict = privacy(Run(output, plan), network, real, "cpu", near_copy_cosine=0.999999)
    assert strict["near_copies"]["count"] == 1
    assert strict["near_copies"]["chosen"] == "as given"


def test_doubles_are_pairs_of_references(tmp_path, network, real):
    images = people(7)
    images[5][0] = images[2][0]  # the same person twice
    images[6] = [None, None, None]
    images[1][0] = None  # its reference is variant 1
    output, plan = runs.make_run(str(tmp_path), images, IdentityScorer(network, real))
    references = [images[0][0], images[1][1], *(images[person][0] for person in range(2, 6))]
    alike = cosines(network, references, references)
    pairs = sorted(((alike[a, b], a, b) for a, b in itertools.combinations(range(6), 2)), reverse=True)
    found = privacy(Run(output, plan), network, real, "cpu", double_cosine=(pairs[3][0] + pairs[4][0]) / 2)["doubles"]
    assert (found["count"], found["pairs"], found["people"]) == (4, 15, 6)
    # Person 5 looks as person 2 does, so a third person is as like the one as the other: in either order.
    assert sorted(entry["people"] for entry in found["first"]) == sorted([a, b] for _, a, b in pairs[:4])
    assert [entry["cosine"] for entry in found["first"]] == pytest.approx(
        [cosine for cosine, *_ in pairs[:4]], abs=1e-6
    )
    assert found["first"][0]["people"] == [2, 5]
    assert found["first"][0]["cosine"] == pytest.approx(1, abs=1e-6)
    default = privacy(Run(output, plan), network, real, "cpu")["doubles"]
    assert default["chosen"] == "1% of pairs of different real people's pictures are as alike"
    assert default["count"] == sum(cosine >= default["threshold"] for cosine, *_ in pairs)


def test_without_real_pictures_only_doubles_are_looked_for(tmp_path, network):
    output, plan = runs.make_run(str(tmp_path), people(3), IdentityScorer(network, None))
    found = privacy(Run(output, plan), network, None, "cpu")
    assert found["near_copies"] is found["real"] is None
    assert found["nearest"] == []
    assert found["doubles"]["threshold"] == DOUBLE_COSINE
    assert "a fixed one" in found["doubles"]["chosen"]


def test_variants_of_real_people_have_no_doubles_and_may_look_like_their_person(tmp_path, network):
    real = runs.compared_with(network, ["0007", "0012", "0099"])
    output, plan = runs.make_run(str(tmp_path), people(3), IdentityScorer(network, real), source="latent")
    found = privacy(Run(output, plan), network, real, "cpu", runs.real_listing())
    assert found["doubles"] is None
    assert found["near_copies"]["scored"] == 6  # nobody knows a picture of 0099
    assert found["near_copies"]["chosen"] == "1% of real pictures are as like another picture of the same person"
    known = [[runs.picture(seed) for seed in seeds] for seeds in runs.REAL_SEEDS.values()]
    own = max(cosines(network, [first], [second])[0, 0] for first, second in known)
    assert found["near_copies"]["threshold"] == pytest.approx(own, abs=1e-6)
    assert len(privacy_lines(found)) == 1


def test_a_missing_shard_and_features_of_another_network_are_refused(tmp_path, network, real):
    output, plan = runs.make_run(str(tmp_path), people(2), None)
    narrow = RealPeople(real.features[:, :9], real.identities, {})
    with pytest.raises(InputError, match="9 features, the network gives 512"):
        privacy(Run(output, plan), network, narrow, "cpu")
    (tmp_path / shard_name(0)).unlink()
    with pytest.raises(InputError, match=r"unit-000000\.parquet"):
        privacy(Run(output, plan), network, real, "cpu")
    assert not (tmp_path / PRIVACY).exists()


def test_a_run_that_was_not_compared_still_has_doubles_and_says_that_nothing_was_scored(tmp_path, network, real):
    output, plan = runs.make_run(str(tmp_path), people(2), None)
    found = privacy(Run(output, plan), network, real, "cpu")
    assert (found["near_copies"]["scored"], found["near_copies"]["share"]) == (0, None)
    assert found["doubles"]["pairs"] == 1
    assert "0 of 0 images, from cosine" in privacy_lines(found)[0]
