"""The training loop in this process: data, randomness, snapshots, going on. Tiny real networks."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.errors import InputError
from models.stylegan3.checkpoint import load_network
from training.gan_config import GanConfig, claim_folder
from training.gan_data import Batches, TrainingImages, to_float
from training.gan_loop import pick_device, train
from training.gan_snapshot import NETWORK, STATE, last_snapshot

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    # Equal bits need equal thread counts, and tiny networks gain nothing from more.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """20 training images of 5 people; a query image that must never be read."""
    root = tmp_path_factory.mktemp("market")
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir()
    random = np.random.default_rng(0)
    for index in range(20):
        image = random.integers(0, 255, (32, 16, 3), np.uint8)
        cv2.imwrite(str(root / f"bounding_box_train/{index % 5 + 1:04d}_c1s1_{index:06d}_00.png"), image)
    (root / "query/0009_c1s1_000001_00.jpg").write_bytes(b"opening this one is the mistake")
    (root / "toy_crowd.json").write_text('{"version": "1", "content_hash": "abc", "options": {"people": 5}}')
    return root


def tiny(tree: Path, out: Path, **changes) -> GanConfig:
    values = {"height": 16, "width": 8, "channel_base": 128, "channel_max": 16, "batch": 8, "workers": 0}
    values |= {"kimg": 0.032, "snapshot_kimg": 0.016, "status_seconds": 0.001}
    return GanConfig(data=tree, out=out, **values | changes)


def run(config: GanConfig) -> Path:
    claim_folder(config)
    return train(config, CPU)


@pytest.fixture(scope="module")
def straight(tree, tmp_path_factory):
    """A training of four iterations in one go."""
    out = tmp_path_factory.mktemp("straight")
    return run(tiny(tree, out))


def test_snapshots_hold_networks_state_and_record(straight, tree):
    assert [path.name for path in sorted(straight.parent.iterdir())] == ["000000016", "000000032"]
    loaded = load_network(straight / NETWORK)
    assert (loaded.generator.config.height, loaded.generator.config.width) == (16, 8)
    assert loaded.discriminator is not None
    record = loaded.record
    assert record["kimg"] == 0.032
    data = record["trained_on"]
    assert (data["name"], data["split"], data["images"]) == (tree.name, "train", 20)
    assert data["identities"]["count"] == 5
    assert data["toy_crowd"] == {"version": "1", "content_hash": "abc"}
    assert record["configuration"]["gamma"] == 1.0
    assert str(tree.parent) not in str(record)  # folders of this machine are nobody's business
    assert record["figures"]["G/loss"] > 0
    out = straight.parent.parent
    names = {path.name for path in (out / "grids").iterdir()}
    assert names == {"reals.png", *(f"{kind}-0000000{n}.png" for kind in ("people", "mixes") for n in (16, 32))}
    assert cv2.imread(str(out / "grids/mixes-000000032.png")).shape == (7 * 18 - 2, 7 * 10 - 2, 3)
    assert list((out / "tensorboard").glob("events*"))
    assert "s/kimg" in (out / "log.txt").read_text()


def test_training_moves_every_weight_and_the_average_follows(straight):
    first = load_network(straight.parent / "000000016" / NETWORK)
    last = load_network(straight / NETWORK)
    for one, two in [
        (first.training_generator, last.training_generator),
        (first.discriminator, last.discriminator),
        (first.generator, last.generator),
    ]:
        after = dict(two.named_parameters())
        for name, before in one.named_parameters():
            assert not torch.equal(before, after[name]), name
    assert not torch.equal(last.generator.mapping.fc0.weight, last.training_generator.mapping.fc0.weight)
    assert torch.equal(last.generator.mapping.w_avg, last.training_generator.mapping.w_avg)


def test_stopped_and_continued_equals_never_stopped(straight, tree, tmp_path):
    run(tiny(tree, tmp_path, kimg=0.016))
    folder = run(tiny(tree, tmp_path))
    assert "going on at kimg 0.0" in (tmp_path / "log.txt").read_text()
    one, two = load_network(straight / NETWORK), load_network(folder / NETWORK)
    for part in ("generator", "training_generator", "discriminator"):
        state = getattr(two, part).state_dict()
        for name, value in getattr(one, part).state_dict().items():
            assert torch.equal(value, state[name]), (part, name)  # bit for bit: nothing is drawn from a state
    states = [torch.load(folder / STATE, weights_only=True) for folder in (straight, folder)]
    assert states[0]["iteration"] == states[1]["iteration"] == 4
    moments = [state["generator_optimizer"]["state"][0]["exp_avg_sq"] for state in states]
    assert torch.equal(*moments)
    # A finished training does nothing when it is started again.
    before = (folder / NETWORK).stat().st_mtime_ns
    assert train(tiny(tree, tmp_path), CPU) is None
    assert last_snapshot(tmp_path) == folder
    assert (folder / NETWORK).stat().st_mtime_ns == before


def test_max_minutes_stops_with_a_snapshot(tree, tmp_path):
    folder = run(tiny(tree, tmp_path, kimg=1000.0, snapshot_kimg=1000.0, max_minutes=0.02))
    assert 8 <= int(folder.name) < 1_000_000
    assert last_snapshot(tmp_path) == folder


def test_only_the_last_two_snapshots_keep_their_training_state(tree, tmp_path):
    run(tiny(tree, tmp_path, snapshot_kimg=0.008))
    kept = {path.parent.name for path in tmp_path.glob(f"snapshots/*/{STATE}")}
    assert kept == {"000000024", "000000032"}
    assert len(list(tmp_path.glob(f"snapshots/*/{NETWORK}"))) == 4


def test_a_folder_of_another_training_is_refused(straight, tree):
    out = straight.parent.parent
    with pytest.raises(InputError, match="--gamma 1.0, not 3.0"):
        claim_folder(tiny(tree, out, gamma=3.0))
    claim_folder(tiny(tree, out, kimg=0.032, snapshot_kimg=5.0, max_minutes=1.0))


def test_a_damaged_state_names_the_snapshot(straight, tree, tmp_path):
    folder = run(tiny(tree, tmp_path, kimg=0.008))
    (folder / STATE).write_bytes((folder / STATE).read_bytes()[:1000])
    with pytest.raises(InputError, match="000000008"):
        train(tiny(tree, tmp_path), CPU)


def test_every_epoch_shows_every_image_once_in_another_order(tree, tmp_path):
    batches = Batches(np.zeros((20, 16, 8, 3), np.uint8), tiny(tree, tmp_path))
    stream = np.concatenate([batches.indices(start) for start in range(0, 120, 8)])
    epochs = stream.reshape(6, 20)
    assert (np.sort(epochs) == np.arange(20)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_workers_share_one_batch(tree, tmp_path):
    images = np.random.default_rng(1).integers(0, 255, (20, 16, 8, 3), np.uint8)
    config = tiny(tree, tmp_path)
    whole = Batches(images, config)
    parts = [Batches(images, config, rank, 2) for rank in range(2)]
    reals, latents = whole.reals(40), whole.latents(40, 512, 16)
    for rank, part in enumerate(parts):
        assert torch.equal(part.reals(40), reals[rank::2])
        for phase in range(2):
            for field in dataclasses.fields(latents[phase]):
                mine = getattr(part.latents(40, 512, 16)[phase], field.name)
                assert torch.equal(mine, getattr(latents[phase], field.name)[rank::2])
    assert not torch.equal(latents[0].z, latents[1].z)
    assert not torch.equal(whole.latents(48, 512, 16)[0].z, latents[0].z)


def test_mirroring_turns_about_half_of_the_images(tree, tmp_path):
    images = np.random.default_rng(1).integers(0, 255, (20, 16, 8, 3), np.uint8)
    reals = {mirror: Batches(images, tiny(tree, tmp_path, mirror=mirror)).reals(0) for mirror in (True, False)}
    same = [torch.equal(one, two) for one, two in zip(reals[True], reals[False], strict=True)]
    turned = [torch.equal(one.flip(2), two) for one, two in zip(reals[True], reals[False], strict=True)]
    assert [a != b for a, b in zip(same, turned, strict=True)] == [True] * 8
    assert 1 <= sum(turned) <= 7
    floats = to_float(reals[False], CPU)
    assert floats.dtype == torch.float32
    expected = reals[False].float() / 127.5 - 1
    assert torch.allclose(floats, expected, atol=1e-6)


def test_style_mixing_crosses_within_the_layers(tree, tmp_path):
    images = np.zeros((20, 16, 8, 3), np.uint8)
    config = tiny(tree, tmp_path, style_mixing_probability=0.5)
    batches = Batches(images, config)
    points = np.concatenate([batches.latents(start, 4, 16)[0].mix_from for start in range(0, 8000, 8)])
    assert set(points) == set(range(1, 17))
    assert abs((points == 16).mean() - 0.5) < 0.06  # 1000 draws: 4 standard deviations
    assert Batches(images, tiny(tree, tmp_path, style_mixing_probability=0.0)).latents(0, 4, 16)[0].mix_z is None


def test_only_the_training_split_is_read(tree):
    data = TrainingImages.load(tree, 16, 8)
    assert data.images.shape == (20, 16, 8, 3)
    assert data.unreadable == ()


def test_no_silent_fallback_to_the_cpu():
    if torch.cuda.is_available():
        assert pick_device(None).type == "cuda"
    else:
        with pytest.raises(InputError, match="--gpus 1"):
            pick_device(1)
    assert pick_device(0).type == "cpu"
