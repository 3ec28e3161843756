"""Rankings against reference numbers, cases checked by hand, and a ranking that sorts one list at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passersby.errors import InputError
from passersby.metrics import ranking
from passersby.metrics.features import multi_query_features
from passersby.metrics.ranking import CMC_RANKS, evaluate_ranking, rank_distances

REFERENCE = Path(__file__).parents[2] / "data/reid"
EXPECTED = json.loads((REFERENCE / "eval_oracle.json").read_text())
METRICS = ("cosine", "euclidean")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "eval_oracle_small.npz") as arrays:
        return dict(arrays)


def labels(arrays) -> tuple:
    return arrays["ql"], arrays["gl"], arrays["qc"], arrays["gc"]


def lifted(arrays) -> tuple[np.ndarray, np.ndarray]:
    """The features with two more dimensions, in which all have one length: both metrics rank as the stored dots do.

    The stored features are float16 and of nearly length 1, and the reference ranks by their dots as they are.
    """
    query, gallery = arrays["qf"].astype(np.float32), arrays["gf"].astype(np.float32)
    query_rest, gallery_rest = (np.sqrt(1.01 - np.square(f).sum(1, keepdims=True)) for f in (query, gallery))
    return (
        np.concatenate([query, query_rest, 0 * query_rest], 1),
        np.concatenate([gallery, 0 * gallery_rest, gallery_rest], 1),
    )


def assert_reference(found) -> None:
    expected = EXPECTED["cases"]["small"]["expect"]
    assert (found.queries, found.valid) == (expected["n_query"], expected["n_valid"])
    for name, value in expected["valid"].items():
        assert getattr(found, name.replace("_standard", "")) == pytest.approx(value, abs=1e-6), name
    for name, value in expected["all"].items():
        assert found.all_queries[name.replace("_standard", "")] == pytest.approx(value, abs=1e-6), name
    with np.load(REFERENCE / "eval_oracle_small_per_query.npz") as each:
        matched = each["n_good"] > 0
        np.testing.assert_array_equal(found.matches, each["n_good"])
        np.testing.assert_array_equal(found.first_hit, np.where(matched, each["first_hit"], -1))
        for ours, theirs in (
            (found.average_precision, each["ap_standard"]),
            (found.average_precision_trapezoid, each["ap_trapezoid"]),
            (found.inverse_negative_penalty, each["inp"]),
        ):
            np.testing.assert_allclose(ours[matched], theirs[matched], atol=1e-6)
            assert np.isnan(ours[~matched]).all()


def test_given_distances_rank_as_the_reference(reference):
    distances = -(reference["qf"].astype(np.float32) @ reference["gf"].astype(np.float32).T)
    assert_reference(rank_distances(distances, *labels(reference)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("chunk", [None, 7])
def test_features_rank_as_the_reference(reference, metric, chunk):
    assert_reference(evaluate_ranking(*lifted(reference), *labels(reference), metric=metric, chunk=chunk))


def test_tensors_rank_as_the_reference(reference):
    features = [torch.from_numpy(values) for values in lifted(reference)]
    who = [torch.from_numpy(values) for values in labels(reference)]
    assert_reference(evaluate_ranking(*features, *who))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_rank_as_the_reference(reference):
    features = [torch.from_numpy(values).cuda() for values in lifted(reference)]
    for metric in METRICS:
        assert_reference(evaluate_ranking(*features, *labels(reference), metric=metric, top=5))


@pytest.mark.parametrize("name", EXPECTED["hand_cases"])
def test_cases_checked_by_hand(name):
    case = EXPECTED["hand_cases"][name]
    relevance = np.array(case["relevance"])
    found = rank_distances(np.arange(len(relevance))[None], np.array([3]), np.where(relevance, 3, 4))
    assert found.mAP == pytest.approx(case["ap_standard"])
    assert found.mAP_trapezoid == pytest.approx(case["ap_trapezoid"])
    assert found.rank1 == case["rank1"]
    assert found.mINP == pytest.approx(case["inp"])


def listed(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, top) -> list[dict]:
    """The obvious ranking: for each query a list, sorted by distance, then by place."""
    found = []
    for query, identity in enumerate(query_ids):
        places = []
        for place, other in enumerate(gallery_ids):
            same_camera = query_cameras is not None and query_cameras[query] == gallery_cameras[place] != -1
            if other != -1 and not (other == identity > 0 and same_camera):
                places.append(place)
        places.sort(key=lambda place: (distances[query][place], place))
        hits = [rank for rank, place in enumerate(places) if gallery_ids[place] == identity > 0]
        standard = [(number + 1) / (rank + 1) for number, rank in enumerate(hits)]
        before = [number / rank if rank else 1 for number, rank in enumerate(hits)]
        found.append(
            {
                "average_precision": np.mean(standard) if hits else np.nan,
                "average_precision_trapezoid": np.mean([standard, before]) if hits else np.nan,
                "inverse_negative_penalty": len(hits) / (hits[-1] + 1) if hits else np.nan,
                "first_hit": hits[0] if hits else -1,
                "matches": len(hits),
                "top_places": (places + [-1] * top)[:top],
            }
        )
    return found


def assert_as_listed(found, expected: list[dict]) -> None:
    each = {name: np.array([one[name] for one in expected]) for name in expected[0]}
    for name, values in each.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-12, err_msg=name)
    matched = each["matches"] > 0
    first = each["first_hit"][matched]
    assert (found.queries, found.valid) == (len(matched), matched.sum())
    for rank in (1, 5, 10, 20):
        hits = (first < rank).sum()
        assert found.all_queries[f"rank{rank}"] == pytest.approx(hits / len(matched))
        if len(first):
            assert getattr(found, f"rank{rank}") == pytest.approx(hits / len(first))
    if len(first):
        np.testing.assert_allclose(found.cmc, [(first <= rank).mean() for rank in range(CMC_RANKS)])
        assert found.mINP == pytest.approx(each["inverse_negative_penalty"][matched].mean())
    else:
        assert np.isnan([found.rank1, found.mAP, found.mAP_trapezoid, found.mINP, *found.cmc]).all()


def people(random, count: int, lowest: int) -> tuple[np.ndarray, np.ndarray]:
    """Identities from `lowest` to 3, and cameras -1 (not known) to 2."""
    return random.integers(lowest, 4, count), random.integers(-1, 3, count)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cameras=st.booleans(),
    values=st.sampled_from([1, 3, 10_000]),  # how many distances there are: few of them make ties
    chunk=st.sampled_from([None, 1, 2]),
    kind=st.sampled_from([np.int64, np.float32, np.float64]),
    blocks=st.booleans(),
)
def test_rankings_are_those_of_sorted_lists(seed, cameras, values, chunk, kind, blocks):
    random = np.random.default_rng(seed)
    queries, gallery, top = random.integers(1, 8), random.integers(1, 30), int(random.integers(0, 6))
    query_ids, query_cameras = people(random, queries, -1)
    gallery_ids, gallery_cameras = people(random, gallery, -1)
    gallery_ids[random.integers(gallery)] = 1  # else it may be all junk
    who = query_ids, gallery_ids, *((query_cameras, gallery_cameras) if cameras else (None, None))
    distances = random.integers(0, values, (queries, gallery)).astype(kind)
    given_distances = np.array_split(distances, 2) if blocks else distances.copy()
    found = rank_distances(given_distances, *who, chunk=chunk, top=top)
    assert_as_listed(found, listed(distances, *who, top))
    listed_distances = np.take_along_axis(distances, found.top_places.clip(0), 1)
    np.testing.assert_array_equal(
        found.top_similarities, np.where(found.top_places < 0, np.nan, -listed_distances).astype(np.float32)
    )
    if not blocks:
        np.testing.assert_array_equal(given_distances, distances)  # not changed


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(METRICS), st.sampled_from([np.float16, np.float32, np.float64]))
def test_features_rank_as_sorted_lists_of_their_distances(seed, metric, kind):
    random = np.random.default_rng(seed)
    query_ids, query_cameras = people(random, 6, 1)
    gallery_ids, gallery_cameras = people(random, 25, -1)
    who = query_ids, gallery_ids, query_cameras, gallery_cameras
    query, gallery = (random.standard_normal((count, 5)).astype(kind) * kind(3) for count in (6, 25))
    exact = [features.astype(np.float64) for features in (query, gallery)]
    if metric == "cosine":
        exact = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in exact]
        distances = -exact[0] @ exact[1].T
    else:
        distances = np.linalg.norm(exact[0][:, None] - exact[1], axis=2)
    before = query.copy(), gallery.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "CHUNK_BYTES", 300)  # three queries at a time
        found = evaluate_ranking(query, gallery, *who, metric=metric, top=4)
    assert_as_listed(found, listed(distances, *who, 4))
    expected = -np.take_along_axis(distances, found.top_places.clip(0), 1)
    listed_places = found.top_places >= 0
    np.testing.assert_allclose(found.top_similarities[listed_places], expected[listed_places], atol=1e-4)
    np.testing.assert_array_equal(query, before[0])
    np.testing.assert_array_equal(gallery, before[1])


@pytest.mark.parametrize("metric", METRICS)
def test_identical_images_rank_in_the_order_of_the_gallery(metric):
    features = np.ones((6, 4), np.float32)
    found = evaluate_ranking(features[:1], features, np.array([2]), np.array([1, -1, 2, 0, 1, 2]), metric=metric, top=9)
    np.testing.assert_array_equal(found.top_places, [[0, 2, 3, 4, 5, -1, -1, -1, -1]])
    assert found.first_hit[0] == 1
    assert found.mAP == pytest.approx((1 / 2 + 2 / 5) / 2)


def test_one_identity_is_found_at_once():
    features = np.random.default_rng(0).standard_normal((30, 4))
    found = evaluate_ranking(features[:3], features, np.full(3, 7), np.full(30, 7))
    assert (found.rank1, found.mAP, found.mAP_trapezoid, found.mINP) == (1, 1, 1, 1)


def test_no_match_at_all_is_a_result():
    features = np.random.default_rng(0).standard_normal((8, 4))
    found = evaluate_ranking(features[:3], features, np.array([5, 0, -1]), np.array([1, 2, 0, -1, 3, 3, 2, 1]), top=2)
    assert (found.queries, found.valid) == (3, 0)
    assert np.isnan([found.rank1, found.mAP, found.mAP_trapezoid, found.mINP]).all()
    assert set(found.all_queries.values()) == {0}
    np.testing.assert_array_equal(found.first_hit, -1)
    np.testing.assert_array_equal(found.top_places[:, 0], [0, 1, 2])  # themselves: who is junk is not known of a query


FEATURES, ONES = np.ones((3, 4), np.float32), np.ones(3, np.int64)
BROKEN = FEATURES.copy()
BROKEN[1, 2] = np.nan
ENDLESS = FEATURES.copy()
ENDLESS[2, 0] = -np.inf


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query_features": FEATURES[:0]}, r"query features have shape \[0, 4\]"),
        ({"gallery_features": FEATURES[:0]}, r"gallery features have shape \[0, 4\]"),
        ({"query_features": FEATURES[0]}, r"query features have shape \[4\]"),
        ({"gallery_features": FEATURES[:, :3]}, "4 features of queries and 3 of the gallery"),
        ({"gallery_features": FEATURES.astype(np.float64)}, r"query features are float32 .* gallery features float64"),
        ({"gallery_features": torch.ones(3, 4)}, r"float32 \(array\) and gallery features float32 \(cpu\)"),
        ({"query_features": BROKEN}, "query features of image 1 are not finite"),
        ({"gallery_features": ENDLESS}, "gallery features of image 2 are not finite"),
        ({"query_features": FEATURES * np.float32(1e20), "metric": "euclidean"}, "length 2e[+]20"),
        ({"query_features": FEATURES.astype(str), "gallery_features": FEATURES.astype(str)}, "give real numbers"),
        ({"query_ids": ONES[:2]}, "3 query images and 2 query identities"),
        ({"gallery_ids": np.ones(4, int)}, "3 gallery images and 4 gallery identities"),
        ({"gallery_ids": ONES * -1}, "all 3 gallery images are junk"),
        ({"gallery_ids": np.array([1, -2, 1])}, "gallery identity -2 of image 1"),
        ({"query_ids": np.ones(3)}, r"query identities are float64 \[3\]"),
        ({"query_cameras": ONES}, "query cameras are given and gallery cameras are not"),
        ({"query_cameras": ONES, "gallery_cameras": ONES[:2]}, "3 gallery identities and 2 gallery cameras"),
        ({"metric": "manhattan"}, "metric 'manhattan'"),
        ({"chunk": 0}, "chunk 0"),
    ],
)
def test_bad_input_is_one_clear_line(changed, message):
    given_input = {"query_features": FEATURES, "gallery_features": FEATURES, "query_ids": ONES, "gallery_ids": ONES}
    with pytest.raises(InputError, match=message) as caught:
        evaluate_ranking(**(given_input | changed))
    assert "\n" not in str(caught.value)


def test_bad_distances_are_one_clear_line():
    with pytest.raises(InputError, match=r"distances \[3, 4\] of 3 gallery images"):
        rank_distances(FEATURES, ONES, ONES)
    with pytest.raises(InputError, match="distances of query 3"):
        rank_distances([FEATURES[:2], BROKEN], np.ones(5, int), np.ones(4, int))
    for count in (4, 6):
        with pytest.raises(InputError, match=f"(5|6) query images and {count} query identities"):
            rank_distances([FEATURES, FEATURES[:2]], np.ones(count, int), np.ones(4, int))
    with pytest.raises(InputError, match="0 query images and 3 query identities"):
        rank_distances([], ONES, np.ones(4, int))


def test_multi_query_features_are_means_of_the_same_person_and_camera():
    random = np.random.default_rng(0)
    query, multi = random.standard_normal((20, 3)).astype(np.float32), random.standard_normal((60, 3))
    query_ids, query_cameras = people(random, 20, 1)
    multi_ids, multi_cameras = people(random, 60, 1)
    multi_ids[multi_ids == 3] = 4  # queries of 3 have none
    found, alone = multi_query_features(query, query_ids, query_cameras, multi, multi_ids, multi_cameras)
    expected = query.copy()
    for place in range(20):
        same = (multi_ids == query_ids[place]) & (multi_cameras == query_cameras[place])
        if same.any():
            expected[place] = multi[same].mean(0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert alone == (expected == query).all(1).sum() > 0
