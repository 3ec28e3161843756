"""Re-ranked distances against reference numbers, and against the paper's definitions written out with sets."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passersby.errors import InputError
from passersby.metrics import reranking
from passersby.metrics import reranking as reciprocal
from passersby.metrics.ranking import rank_distances
from passersby.metrics.reranking import k_reciprocal_distances

REFERENCE = Path(__file__).parents[2] / "data/reid"
NAME = "expect_reranked_k1_20_k2_6_lambda_0.3"
EXPECTED = json.loads((REFERENCE / "eval_oracle.json").read_text())["cases"]["small"][NAME]


def reference() -> tuple[np.ndarray, np.ndarray, tuple]:
    with np.load(REFERENCE / "eval_oracle_small.npz") as arrays:
        kept = arrays["gl"] >= 0  # junk is taken out before the neighbourhoods are made
        who = arrays["ql"], arrays["gl"][kept], arrays["qc"], arrays["gc"][kept]
        return arrays["qf"].astype(np.float32), arrays["gf"].astype(np.float32)[kept], who


@pytest.mark.parametrize("tensors", [False, True])
def test_re_ranked_scores_are_the_references(tensors):
    query, gallery, who = reference()
    if tensors:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        query, gallery = torch.from_numpy(query).to(device), torch.from_numpy(gallery).to(device)
    # Euclidean: the reference takes the features, rounded to float16, as they are.
    found = rank_distances(k_reciprocal_distances(query, gallery, metric="euclidean"), *who)
    expected = next(scores for name, scores in EXPECTED.items() if name.startswith("torchreid_semantics"))
    assert (found.queries, found.valid) == (expected["n_query"], expected["n_valid"])
    for name, value in expected["valid"].items():
        assert getattr(found, name.replace("_standard", "")) == pytest.approx(value, abs=1e-4), name
    for name, value in expected["all"].items():
        assert found.all_queries[name.replace("_standard", "")] == pytest.approx(value, abs=1e-4), name


def defined(query, gallery, k1, k2, lambda_value) -> np.ndarray:
    """The definitions one image at a time, in float64: [Q, G]."""
    every = np.concatenate([query, gallery]).astype(np.float64)
    distance = np.square(every[:, None] - every).sum(2) ** 2
    distance /= distance.max(1, keepdims=True)
    nearest = [list(np.argsort(row)) for row in distance]

    def mutual(image: int, k: int) -> set[int]:
        return {other for other in nearest[image][: k + 1] if image in nearest[other][: k + 1]}

    encoding = np.zeros_like(distance)
    for image in range(len(every)):
        own = mutual(image, k1)
        expanded = set(own)
        for other in own:
            theirs = mutual(other, int(np.around(k1 / 2)))
            if len(theirs & own) > 2 / 3 * len(theirs):
                expanded |= theirs
        for other in expanded:
            encoding[image, other] = np.exp(-distance[image, other])
        encoding[image] /= encoding[image].sum()
    encoding = np.stack([encoding[row[:k2]].mean(0) for row in nearest])
    result = np.empty((len(query), len(gallery)))
    for q in range(len(query)):
        for g in range(len(gallery)):
            ours, theirs = encoding[q], encoding[len(query) + g]
            jaccard = 1 - np.minimum(ours, theirs).sum() / np.maximum(ours, theirs).sum()
            result[q, g] = (1 - lambda_value) * jaccard + lambda_value * distance[q, len(query) + g]
    return result


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k1=st.integers(1, 24),
    k2=st.integers(1, 8),
    lambda_value=st.sampled_from([0, 0.3, 1]),
    small=st.booleans(),
    metric=st.sampled_from(["cosine", "euclidean"]),
)
def test_distances_are_those_of_the_definitions(seed, k1, k2, lambda_value, small, metric):
    random = np.random.default_rng(seed)
    queries, gallery = random.integers(1, 7), random.integers(1, 40)
    centres = random.standard_normal((5, 6)) * 2
    features = [
        (centres[random.integers(0, 5, n)] + random.standard_normal((n, 6))).astype(np.float32)
        for n in (queries, gallery)
    ]
    with pytest.MonkeyPatch.context() as patch:
        if small:  # a block for each query, and several parts of everything else
            patch.setattr(reranking, "CHUNK_BYTES", 100)
            patch.setattr(reciprocal, "ROWS", 4)
            patch.setattr(reranking, "TERMS", 20)
        blocks = list(k_reciprocal_distances(*features, k1, k2, lambda_value, metric=metric))
    assert len(blocks) == (queries if small and gallery > 12 else len(blocks))
    if metric == "cosine":
        features = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in features]
    found = np.concatenate(blocks)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, defined(*features, k1, k2, lambda_value), atol=1e-4)  # float32, squared twice


@pytest.mark.parametrize("k1", [7, 11, 20])  # halves of odd ones are rounded to even: 4, 6
def test_distances_are_those_of_the_definitions_where_neighbourhoods_are_many(k1):
    random = np.random.default_rng(1)
    centres = random.standard_normal((12, 6))
    features = [
        (centres[random.integers(0, 12, n)] + random.standard_normal((n, 6)) * 0.4).astype(np.float32) for n in (10, 90)
    ]
    found = np.concatenate(list(k_reciprocal_distances(*features, k1, metric="euclidean")))
    np.testing.assert_allclose(found, defined(*features, k1, 6, 0.3), atol=1e-4)


def test_junk_left_in_the_gallery_changes_distances():
    query, gallery, _ = reference()
    junk = query[:50] + 0.01
    alone = np.concatenate(list(k_reciprocal_distances(query, gallery)))
    beside = np.concatenate(list(k_reciprocal_distances(query, np.concatenate([gallery, junk]))))
    assert np.abs(alone - beside[:, : len(gallery)]).max() > 0.1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [0, 0.1, 1e4])
def test_identical_images_have_finite_distances(metric, value):
    images = np.full((40, 7), value, np.float32)
    found = np.concatenate(list(k_reciprocal_distances(images[:5], images[5:], metric=metric)))
    assert found.shape == (5, 35)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k1": 0}, "k1 0"),
        ({"k2": 0}, "k2 0"),
        ({"lambda_value": 1.5}, "lambda_value 1.5"),
        ({"gallery_features": np.full((3, 4), np.nan)}, "gallery features of image 0 are not finite"),
        ({"gallery_features": np.ones((3, 5))}, "4 features of queries and 5 of the gallery"),
        ({"query_features": np.ones((0, 4))}, r"query features have shape \[0, 4\]"),
    ],
)
def test_bad_input_is_refused_before_the_first_block(changed, message):
    with pytest.raises(InputError, match=message):
        k_reciprocal_distances(**({"query_features": np.ones((2, 4)), "gallery_features": np.ones((3, 4))} | changed))
