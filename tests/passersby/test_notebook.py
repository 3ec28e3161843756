"""What `import passersby` offers: every example of the docstrings, and that the import itself is light."""

import doctest
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import passersby
from passersby.errors import InputError
from passersby.reid.checkpoint import save_reid
from passersby.reid.network import FeatureNetwork, ReidConfig, ReidNetwork
from passersby.stylegan3 import to_uint8
from passersby.stylegan3.generator import z_of_seeds

EXAMPLES = sorted(set(passersby.__all__) - {"InputError"})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of the examples: a tiny re-identification network, and the manifest of a run."""
    torch.manual_seed(0)
    network = ReidNetwork(ReidConfig(2, backbone="resnet10", height=64, width=32, embedding=16)).eval()
    save_reid(tmp_path / "reid.safetensors", network, class_names=["1", "2"], record={})
    rows = {"person": [0, 0, 1], "variant": [0, 1, 0], "verdict": ["kept", "dissimilar", "kept"]}
    (tmp_path / "OUT").mkdir()
    pq.write_table(pa.table({**rows, "ssim": [1.0, 0.5, 1.0]}), tmp_path / "OUT" / "manifest.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_each_name_gives_what_it_says(name, folder):
    text = getattr(passersby, name).__doc__
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    told = []
    result = doctest.DocTestRunner().run(test, out=told.append)
    assert result.attempted > 1
    assert result.failed == 0, "".join(told)


def test_the_import_is_light_and_every_name_is_listed():
    program = """
import sys
import passersby
assert set(passersby.__all__) <= set(dir(passersby))
heavy = {"torch", "ray", "numpy", "pyarrow", "cv2"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'typo'"):
        passersby.typo  # noqa: B018


def test_images_of_seeds_are_those_of_their_z_and_mixing_replaces_layers(tiny):
    generator = tiny.generator()
    z = z_of_seeds([3, 5], generator.z_dim)
    ws = generator.mapping(torch.tensor(z, dtype=torch.float32), truncation_psi=0.5)
    expected = to_uint8(generator.synthesis(ws)).numpy()
    np.testing.assert_array_equal(generator.images([3, 5], truncation_psi=0.5), expected)
    np.testing.assert_array_equal(generator.images(z, truncation_psi=0.5), expected)
    every = range(generator.num_ws)
    np.testing.assert_array_equal(generator.images([9, 8], [3, 5], every, truncation_psi=0.5), expected)
    ws[0, [2, 4]] = ws[1, [2, 4]]
    expected = to_uint8(generator.synthesis(ws)).numpy()
    np.testing.assert_array_equal(generator.images([3, 5], [5], [2, 4], truncation_psi=0.5), expected)


def test_many_images_are_made_some_at_a_time(tiny, monkeypatch):
    generator = tiny.generator()
    at_once = generator.images(range(5))
    monkeypatch.setattr("passersby.stylegan3.generator.IMAGES_AT_ONCE", 2)
    np.testing.assert_allclose(generator.images(range(5)).astype(int), at_once, atol=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "no people"),
        ((np.zeros((2, 3)),), r"z has shape \(2, 3\), expected \[N, 8\]"),
        (([0, 1], [1, 2, 3], [0]), "3 others for 2 people"),
        (([0], [1]), r"layers \[\]: give one or more"),
        (([0], [1], [0, 16]), "the style inputs 0 to 15"),
        (([0], None, [3]), "give others"),
    ],
)
def test_images_that_cannot_be_are_refused(tiny, arguments, message):
    with pytest.raises(InputError, match=message):
        tiny.generator().images(*arguments)


def test_features_are_those_of_the_feature_network(folder):
    loaded = passersby.load_reid(folder / "reid.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
    found = loaded.features(images)
    np.testing.assert_array_equal(found, FeatureNetwork(loaded.network, loaded.sha256)(images))
    with pytest.raises(InputError, match="are not uint8"):
        loaded.features(images[:, :32])


def test_scores_want_a_batch_of_images():
    with pytest.raises(InputError, match=r"are not \[N, H, W, 3\]"):
        passersby.pedestrian_scores(np.zeros((128, 64, 3), np.uint8))


def test_a_manifest_is_read_by_path_and_uri(folder):
    manifest = passersby.read_manifest(folder / "OUT")
    assert manifest.column_names == ["person", "variant", "verdict", "ssim"]
    assert passersby.read_manifest(f"file://{folder}/OUT/").equals(manifest)
    (folder / "OUT" / "manifest-strict.parquet").write_bytes((folder / "OUT" / "manifest.parquet").read_bytes())
    assert passersby.read_manifest("OUT", "strict", ["ssim"]).column_names == ["ssim"]


def test_a_manifest_that_cannot_be_read_is_an_input_error(folder):
    with pytest.raises(InputError, match="cannot read none/manifest.parquet: No such file"):
        passersby.read_manifest("none")
    with pytest.raises(InputError, match="cannot read what://bucket/run/manifest.parquet: ArrowInvalid") as caught:
        passersby.read_manifest("what://KEY:SECRET@bucket/run?option=1")
    assert "SECRET" not in str(caught.value)
    (folder / "OUT" / "manifest.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="OUT/manifest.parquet is damaged"):
        passersby.read_manifest("OUT")
