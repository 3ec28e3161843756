"""The identity stage on units of rows, without Ray, by a tiny re-ID network of fixed weights."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.identity_scorer import IdentityScorer
from datasets.people.real_people import RealPeople
from datasets.runs.rows import images_of, with_columns
from datasets.runs.shards import shard_table
from passersby.errors import InputError
from passersby.reid.network import FeatureNetwork, ReidConfig, ReidNetwork

SCHEMA = {
    "person": pa.int64(),
    "variant": pa.int64(),
    "source": pa.string(),
    "reference_variant": pa.int64(),
    "image": pa.binary(),
    "status": pa.string(),
    "message": pa.string(),
}
HEIGHT, WIDTH = 32, 16


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    torch.manual_seed(0)
    config = ReidConfig(classes=3, backbone="resnet10", neck="none", height=HEIGHT, width=WIDTH, stem="small")
    return FeatureNetwork(ReidNetwork(config).eval(), "0" * 64)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Noise around a colour: features of pictures differ by some hundredths."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 256, 3)
    noise = rng.integers(-60, 60, (height, width, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))[1].tobytes()


def row(person, variant, source="seed", reference=0, image=None, status="ok"):
    image = png(picture(100 * person + variant)) if image is None else image
    return (person, variant, source, reference, image, status, None)


def unit(rows: list[tuple]) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = {name: pa.array(values, SCHEMA[name]) for name, values in zip(SCHEMA, columns, strict=True)}
    return with_columns(pa.table({"unit": pa.array([0], pa.int64())}), arrays)


def feature(network: FeatureNetwork, image: np.ndarray) -> np.ndarray:
    """One picture's feature by the network itself, without flips or batches of ours: [D] float64, of length 1."""
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        both = network.network.feature(x) + network.network.feature(x.flip(3))
    values = both[0].double().numpy()
    return values / np.linalg.norm(values)


REAL = {5: (905, 915), 6: (906, 916), 8: (908,)}  # identity -> seeds of his pictures


@pytest.fixture(scope="module")
def real(network) -> RealPeople:
    seeds = [(identity, seed) for identity, all_of in REAL.items() for seed in all_of]
    features = np.stack([feature(network, picture(seed)) for _, seed in seeds]).astype(np.float32)
    return RealPeople(features, np.array([identity for identity, _ in seeds]), {0: 5, 1: 6, 2: None})


def scored(network, real, rows: list[tuple]) -> dict[str, list]:
    return images_of(IdentityScorer(network, real)(unit(rows))).to_pydict()


def cosines_by_hand(network, image: np.ndarray) -> dict[int, float]:
    """identity -> greatest cosine to one of his pictures."""
    values = {identity: [feature(network, picture(seed)) for seed in seeds] for identity, seeds in REAL.items()}
    return {identity: max(float(feature(network, image) @ other) for other in of) for identity, of in values.items()}


@pytest.mark.slow
def test_variants_of_real_people_are_compared_with_their_own_pictures_and_all_others(network, real):
    rows = [row(person, variant, "latent") for person in (0, 1) for variant in range(3)]
    rows.append(row(1, 3, "latent", image=png(picture(908))))  # a copy of somebody else's picture
    found = scored(network, real, rows)
    pictures = [picture(100 * person + variant) for person in (0, 1) for variant in range(3)] + [picture(908)]
    for place, image in enumerate(pictures):
        hand = cosines_by_hand(network, image)
        own = hand.pop({0: 5, 1: 6}[rows[place][0]])
        # 1e-6: float32 features of 512 values; differences of such cosines are of that order too.
        assert found["identity_cosine"][place] == pytest.approx(own, abs=1e-6)
        assert found["identity_margin"][place] == pytest.approx(own - max(hand.values()), abs=2e-6)
        nearest = max(cosines_by_hand(network, image).items(), key=lambda item: item[1])[0]
        assert found["nearest_identity"][place] == nearest
        assert (found["identity_margin"][place] > 0) == (nearest == {0: 5, 1: 6}[rows[place][0]])
    assert found["nearest_identity"][-1] == 8
    assert found["identity_margin"][-1] < 0


def test_artificial_people_are_compared_with_their_reference(network, real):
    rows = [row(3, 0, reference=1), row(3, 1, reference=1), row(3, 2, reference=1), row(4, 0, reference=0)]
    found = scored(network, real, rows)
    base = feature(network, picture(301))
    for place, seed in enumerate((300, 301, 302)):
        cosine = float(feature(network, picture(seed)) @ base)
        assert found["identity_cosine"][place] == pytest.approx(cosine, abs=1e-6)
        nearest = max(cosines_by_hand(network, picture(seed)).values())
        assert found["identity_margin"][place] == pytest.approx(cosine - nearest, abs=2e-6)
    assert found["identity_cosine"][1] == found["identity_cosine"][3] == 1.0
    assert found["identity_cosine"][0] < 1.0
    alone = scored(network, None, rows)
    assert alone["identity_cosine"] == found["identity_cosine"]
    assert alone["nearest_identity"] == alone["identity_margin"] == [None] * 4


def test_what_cannot_be_compared_is_null(network, real):
    rows = [
        row(2, 0, "latent"),  # a person without real pictures
        row(3, 0, reference=None),
        row(4, 0, reference=1),
        row(4, 1, reference=1, image=b"rubbish"),
        row(5, 0, status="error"),
        row(6, 0, "latent"),  # nobody whom the run knows
    ]
    found = scored(network, real, rows)
    assert found["identity_cosine"] == found["identity_margin"] == [None] * 6
    assert [value is None for value in found["nearest_identity"]] == [False, False, False, True, True, False]
    assert found["status"] == ["ok", "ok", "ok", "error", "error", "ok"]
    assert "7 bytes stored are no JPEG, PNG, WebP, BMP or TIFF image" in found["message"][3]
    lonely = RealPeople(real.features[:2], real.identities[:2], {0: 5})  # one real person: no others
    found = scored(network, lonely, [row(0, 0, "latent"), row(3, 0)])
    assert [value is None for value in found["identity_margin"]] == [True, False]
    assert None not in found["identity_cosine"]


def test_features_that_are_not_finite_are_an_error_of_the_image(network, real):
    class Broken(FeatureNetwork):  # the real one, whose first image of a chunk gets no finite feature
        def __call__(self, images):
            features = super().__call__(images)
            features[0] = np.nan
            return features

    broken = Broken(network.network, network.sha256)
    found = scored(broken, real, [row(3, 0), row(3, 1, reference=2), row(3, 2, reference=2)])
    assert found["status"] == ["error", "ok", "ok"]
    assert "not finite" in found["message"][0]
    assert found["identity_cosine"][0] is found["nearest_identity"][0] is found["identity_margin"][0] is None
    assert found["identity_cosine"][2] == 1.0


def test_an_image_has_the_same_scores_alone_as_in_any_company(network, real):
    rows = [row(0, variant, "latent") for variant in range(21)]  # more than a chunk
    together = scored(network, real, rows)
    for place in (0, 7, 15, 16, 20):
        alone = scored(network, real, [rows[place]])
        for name in ("identity_cosine", "nearest_identity", "identity_margin"):
            assert alone[name][0] == together[name][place], (name, place)
    turned = scored(network, real, rows[::-1])
    assert turned["identity_cosine"] == together["identity_cosine"][::-1]
    artificial = [row(3, variant) for variant in range(18)]
    pair = scored(network, real, [artificial[0], artificial[17]])
    whole = scored(network, real, artificial)
    assert pair["identity_cosine"][1] == whole["identity_cosine"][17]


def test_images_of_other_sizes_are_resized_as_re_id_data_is(network, real):
    small, large = picture(1, 16, 8), picture(2, 64, 32)
    found = scored(network, real, [row(0, 0, "latent", image=png(small)), row(0, 1, "latent", image=png(large))])
    for place, resized in enumerate(
        [
            cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC),
            cv2.resize(large, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA),
        ]
    ):
        assert found["identity_cosine"][place] == pytest.approx(cosines_by_hand(network, resized)[5], abs=1e-6)


def test_types_timing_and_columns_that_a_shard_takes(network, real):
    batch = IdentityScorer(network, real)(unit([row(0, 0, "latent"), row(3, 0)]))
    images = images_of(batch)
    types = [images.schema.field(n).type for n in ("identity_cosine", "nearest_identity", "identity_margin")]
    assert types == [pa.float32(), pa.int64(), pa.float32()]
    assert batch["seconds_identity"][0].as_py() > 0
    assert shard_table(0, images)["identity_cosine"].null_count == 0


def test_bad_settings_are_named(network, real):
    with pytest.raises(InputError, match="threads=0"):
        IdentityScorer(network, real, threads=0)
    narrow = RealPeople(real.features[:, :7], real.identities, {})
    with pytest.raises(InputError, match="7 features, the network gives 512"):
        IdentityScorer(network, narrow)
