"""Trainings with identity pairs: what they write, going on exactly, two workers. Tiny real networks."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed

from datasets.people.image_source import open_images
from datasets.people.listing import identities_sha256
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.reid.checkpoint import save_reid
from passersby.reid.network import ReidConfig, ReidNetwork
from passersby.stylegan3.checkpoint import load_network
from reporting.curves import read_history
from tests.helpers.gan_trainings import ROOT, check_equal_trainings, kill_at, make_tree, run, tiny
from training.checkpoints import STATE, last_checkpoint
from training.gan import intraclass_loss
from training.gan.config import GanTraining
from training.gan.data import Batches
from training.gan.images import list_data, load_data
from training.gan.run import train
from training.gan.start import NETWORK, claim_folder, last_snapshot, start
from training.gan.validation import identities_grid, person_latents
from training.log import HISTORY

LABELLED = 3


def pairs(tree: Path, out: Path, **changes) -> GanTraining:
    return tiny(tree, out, **{"pairs": True, "labelled_people": LABELLED, "batch": 8} | changes)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def straight(tree, tmp_path_factory) -> Path:
    """A training of six iterations in one go; its last snapshot."""
    return run(pairs(tree, tmp_path_factory.mktemp("straight")))


def test_the_record_says_which_half_is_who_and_whose_labels_were_used(straight, tree):
    loaded = load_network(straight / NETWORK)
    assert loaded.record["z"] == {"who": [0, 256], "how": [256, 512]}
    assert loaded.has_who
    labelled = open_images(tree, 1, (LABELLED, 0)).labelled.identities
    record = loaded.record["trained_on"]
    assert record["labelled"] == {"count": 3, "sha256": identities_sha256(labelled), "draw": 0, "images": 12}
    assert record["images"] == 20
    assert record["identities"]["count"] == 5  # one of the three people without labels is set aside
    assert loaded.record["configuration"]["labelled_people"] == LABELLED
    # The file is that of any training: generator, its average, the ordinary discriminator of three channels.
    assert loaded.discriminator.config.img_channels == loaded.generator.config.img_channels == 3


def test_the_folder_shows_how_the_pairs_go(straight):
    out = straight.parent.parent
    sheet = cv2.imread(str(out / "grids/identities-000000048.png"))
    assert sheet.shape == (10 * 18 - 2, 10 * 10 - 2, 3)
    log = (out / "log.txt").read_text()
    for word in ("identity labels of 3 people: 12 of 20 images", "pairs G ", "strangers ", "12 of 20"):
        assert word in log, word
    names = {"G/pair_loss", "D/pair_loss", "scores/pair_real", "scores/pair_fake", "scores/pair_stranger"}
    history = read_history(out / HISTORY)
    assert all(names | {"augment/p", "augment/pair_p"} < set(record) for record in history)
    assert any("D/pair_r1" in record for record in history)
    assert len({record["augment/pair_p"] for record in history}) > 1  # it adapts


def test_training_moves_every_weight_of_the_pair_discriminator(straight, tree, tmp_path):
    run(pairs(tree, tmp_path, kimg=0.008))
    states = [torch.load(last_checkpoint(out) / STATE, weights_only=True) for out in (tmp_path, straight.parent.parent)]
    before, after = (state["pairs"]["discriminator"] for state in states)
    assert before["b16.fromrgb.weight"].shape[1] == 6
    assert all(not torch.equal(value, after[name]) for name, value in before.items() if not name.endswith("filter"))


def test_a_transfer_from_a_checkpoint_keeps_its_pair_discriminator(straight, tree, tmp_path):
    checkpoint = last_checkpoint(straight.parent.parent)
    learned = torch.load(checkpoint / STATE, weights_only=True)["pairs"]["discriminator"]
    for folder, kept in ((checkpoint, True), (straight, False)):
        config = pairs(tree, tmp_path / folder.name, transfer=folder / NETWORK)
        started = start(config, torch.device("cpu"), images=None)
        ours = started.state.pairs.discriminator.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in learned.items()) == kept
        assert f"the pair discriminator {'is the checkpoint' if kept else 'starts anew'}" in started.lines[-1]


def test_a_training_without_pairs_writes_what_it_wrote_before(tree, tmp_path):
    folder = run(tiny(tree, tmp_path, kimg=0.008))
    assert "pairs" not in torch.load(last_checkpoint(tmp_path) / STATE, weights_only=True)
    loaded = load_network(folder / NETWORK)
    assert not loaded.has_who
    assert "z" not in loaded.record
    assert "labelled" not in loaded.record["trained_on"]
    assert not list(tmp_path.glob("grids/identities*"))
    assert "pairs G" not in (tmp_path / "log.txt").read_text()


# When a training stops or is killed is no matter of pairs: test_run.py has all moments. What pairs add to a checkpoint
# has changed at 40 images, once by adaptation.
@pytest.mark.slow
def test_stopped_and_continued_equals_never_stopped(straight, tree, tmp_path):
    run(pairs(tree, tmp_path, kimg=0.04))
    folder = run(pairs(tree, tmp_path))
    check_equal_trainings(straight, folder, histories=False)


@pytest.mark.slow
def test_killed_and_continued_equals_never_killed(straight, tree, tmp_path):
    out = tmp_path / "out"
    kill_at("iteration 3", pairs(tree, out))
    folder = run(pairs(tree, out))
    assert "going on" in (out / "log.txt").read_text()
    check_equal_trainings(straight, folder)


def test_another_training_of_pairs_is_refused_in_the_same_folder(straight, tree, tmp_path):
    out = straight.parent.parent
    changes = (
        {"label_draw": 1}, {"labelled_people": 4}, {"labelled_people": None}, {"pair_cameras": "different"},
        {"pair_gamma": 3.0}, {"pair_strangers": 0.1}, {"pairs": False, "labelled_people": None},
    )  # fmt: skip
    for change in changes:
        with pytest.raises(InputError, match=f"--{next(iter(change)).replace('_', '-')} "):
            claim_folder(pairs(tree, out, **change))
    run(tiny(tree, tmp_path, kimg=0.008))
    with pytest.raises(InputError, match="--pairs False, not True"):
        claim_folder(pairs(tree, tmp_path, labelled_people=None))


def reid_file(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = ReidConfig(classes=3, backbone="resnet10", height=16, width=8)
    record = {"trained_on": {"real": [{"name": "people", "people": 3, "sha256": "ab" * 32}]}}
    save_reid(path, ReidNetwork(config).eval(), class_names=["a", "b", "c"], record=record)
    return path


def test_an_identity_network_is_one_more_loss_and_stands_in_the_record(straight, tree, tmp_path):
    judge, other = (reid_file(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1))
    out = tmp_path / "out"
    run(pairs(tree, out, identity_network=judge, kimg=0.024))
    folder = run(pairs(tree, out, identity_network=judge))  # goes on
    check_equal_trainings(run(pairs(tree, tmp_path / "at once", identity_network=judge)), folder, histories=False)
    loaded, without = load_network(folder / NETWORK), load_network(straight / NETWORK)
    assert loaded.record["identity"]["sha256"] == file_sha256(judge)
    assert loaded.record["identity"]["record"]["trained_on"]["real"][0]["people"] == 3
    assert "identity" not in without.record
    weights = [network.generator.state_dict()["mapping.fc0.weight"] for network in (loaded, without)]
    assert not torch.allclose(*weights, atol=1e-4)
    assert "alike " in (out / "log.txt").read_text()
    for given, words in ((other, "with an --identity-network of sha256"), (None, "with an --identity-network of")):
        with pytest.raises(InputError, match=words):
            run(pairs(tree, out, identity_network=given, kimg=0.064))
    with pytest.raises(InputError, match="without --identity-network"):
        run(pairs(tree, straight.parent.parent, identity_network=judge, kimg=0.064))
    with pytest.raises(InputError, match="--identity-weight 10.0, not 2.0"):
        claim_folder(pairs(tree, out, identity_network=judge, identity_weight=2.0))


def test_the_intraclass_loss_goes_on_with_its_averages(straight, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(intraclass_loss, "MEMORY", 1)
    out = tmp_path / "out"
    run(pairs(tree, out, intraclass_weight=50.0, kimg=0.024))
    folder = run(pairs(tree, out, intraclass_weight=50.0))  # goes on
    at_once = run(pairs(tree, tmp_path / "at once", intraclass_weight=50.0))
    check_equal_trainings(at_once, folder, histories=False)
    weights = [load_network(each / NETWORK).generator.state_dict()["mapping.fc0.weight"] for each in (folder, straight)]
    assert not torch.allclose(*weights, atol=1e-4)
    assert "intraclass error 0." in (out / "log.txt").read_text()
    with pytest.raises(InputError, match="--intraclass-weight 50.0, not 0.0"):
        claim_folder(pairs(tree, out))


@pytest.mark.slow
def test_a_checkpoint_without_its_pair_discriminator_is_damaged(tree, tmp_path):
    run(pairs(tree, tmp_path, kimg=0.008))
    path = last_checkpoint(tmp_path) / STATE
    values = torch.load(path, weights_only=True)
    del values["pairs"]
    torch.save(values, path)
    with pytest.raises(InputError, match="cannot go on from .*000000008 .'pairs'.: remove that folder"):
        run(pairs(tree, tmp_path))


@pytest.mark.slow
def test_pairs_of_people_set_aside_are_scored_the_same_way_each_time(tree, tmp_path):
    out = tmp_path / "out"
    run(pairs(tree, out, validation_people=2, kimg=0.016, validation_kimg=0.008, discriminator_lr=1e-12))
    history = read_history(out / HISTORY)
    scores = [record["scores/pair_validation"] for record in history]
    assert len(scores) == 2
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)  # the same pairs and, at such a rate, the same network
    assert not any("scores/pair_validation" in record for record in read_history(run_of_one(tree, tmp_path) / HISTORY))


def run_of_one(tree: Path, tmp_path: Path) -> Path:
    """A training with one person set aside, who makes no strangers."""
    return run(pairs(tree, tmp_path / "one", kimg=0.016)).parents[1]


@pytest.mark.slow
def test_pairs_with_labels_of_cameras_and_of_different_cameras(tree, tmp_path):
    folder = run(pairs(tree, tmp_path, condition="camera", pair_cameras="different", kimg=0.016))
    loaded = load_network(folder / NETWORK)
    assert (loaded.generator.c_dim, loaded.discriminator.config.c_dim) == (2, 2)
    assert loaded.cameras == (1, 2)
    assert loaded.has_who
    state = torch.load(last_checkpoint(tmp_path) / STATE, weights_only=True)
    assert state["pairs"]["discriminator"]["mapping.embed.weight"].shape[1] == 4  # labels of both pictures


class FromIndices:
    """A stream's reader: its images are those of its own sequence of indices, whatever it is asked for."""

    def __init__(self, images, indices, batch, rank, world_size):
        self.images, self.indices, self.batch, self.share = images, indices, batch, slice(rank, None, world_size)

    def read(self, images_seen: int, indices: np.ndarray) -> np.ndarray:
        assert images_seen % self.batch == 0  # a stream goes on batch by batch
        return self.images[self.indices(images_seen)[self.share]]


@pytest.mark.parametrize("rank", [0, 1])
def test_streamed_pairs_are_those_in_memory(tree, tmp_path, rank):
    config = pairs(tree, tmp_path, batch=16, workers=2)
    data = load_data(config, list_data(config))

    def stream(source, target, indices, batch, *, rank, world_size):
        return FromIndices(data.sample, indices, batch, rank, world_size)

    def inputs(data, seen):
        readers = data.reader(config, rank, 2), data.pair_reader(config, rank, 2)
        made = Batches(readers[0], data.order(config), config, rank, 2, None, data.pair_order(config), readers[1])
        return made.inputs(seen, 0.0, 512, 16, torch.device("cpu"))

    streamed = dataclasses.replace(data, stream=stream)
    for seen in (0, 16, 160):
        one, two = inputs(data, seen), inputs(streamed, seen)
        assert torch.equal(one.reals, two.reals)
        assert torch.equal(one.pairs.reals, two.pairs.reals)
        assert torch.equal(one.pairs.strangers, two.pairs.strangers)


def test_too_few_people_for_pairs_are_named_before_anything_is_written(tree, tmp_path):
    with pytest.raises(InputError, match="--labelled-people 7: .* has 6 people of known identity"):
        train(pairs(tree, tmp_path / "a", labelled_people=7), torch.device("cpu"))
    flat = tmp_path / "flat"
    flat.mkdir()
    for index in range(10):
        picture = np.random.default_rng(index).integers(0, 255, (16, 8, 3), np.uint8)
        cv2.imwrite(str(flat / f"{index}.png"), picture)
    for labelled in (None, 2):
        with pytest.raises(InputError, match="--pairs: 0 of 0 labelled|--labelled-people 2: flat has 0 people"):
            train(pairs(flat, tmp_path / "b", labelled_people=labelled), torch.device("cpu"))


def test_a_row_of_the_sheet_of_identities_is_one_who(straight):
    generator = load_network(straight / NETWORK).generator
    z = person_latents(5, 512)
    row = z[[1]].repeat(3, 1)
    row[1:, 256:] = z[3:, 256:]
    with torch.no_grad():
        expected = generator(row)
    sheet = identities_grid(generator, people=3, hows=3)
    for column, image in enumerate(expected):
        got = sheet[18 : 18 + 16, 10 * column : 10 * column + 8].astype(int)
        assert np.abs(got - (image.permute(1, 2, 0).numpy() * 127.5 + 128).clip(0, 255).astype(int)).max() <= 1


# ---- two workers

PAIRS_OF_TWO = {"batch": 16, "kimg": 0.064, "augment": "fixed", "augment_p": 0.5}


def work(rank: int, tree: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    config = pairs(Path(tree), Path(folder) / "two", **PAIRS_OF_TWO, workers=2)
    train(config, torch.device("cpu"), rank=rank)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_learn_what_one_process_learns(tree, tmp_path):
    one = load_network(run(pairs(tree, tmp_path / "one", **PAIRS_OF_TWO)) / NETWORK)
    claim_folder(pairs(tree, tmp_path / "two", **PAIRS_OF_TWO, workers=2))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tree), str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment) for rank in range(2)]
    assert [worker.wait(timeout=600) for worker in workers] == [0, 0]
    two = load_network(last_snapshot(tmp_path / "two") / NETWORK)
    states = [torch.load(last_checkpoint(tmp_path / name) / STATE, weights_only=True) for name in ("one", "two")]
    networks = {
        "training_generator": (0.0025, one.training_generator.state_dict(), two.training_generator.state_dict()),
        "discriminator": (0.002, one.discriminator.state_dict(), two.discriminator.state_dict()),
        "pairs": (0.002, *(state["pairs"]["discriminator"] for state in states)),
    }
    for part, (rate, expected, got) in networks.items():
        for name, value in expected.items():
            # As for trainings without pairs (test_train_gan.py): Adam makes whole steps of gradients that are rounding.
            difference = (value - got[name]).abs()
            assert difference.max() <= 12 * rate + 1e-5 * value.abs().max(), (part, name)
            close = difference <= 0.06 * rate + 2e-6 * value.abs()
            assert close.float().mean() > 0.95 or (~close).sum() <= 1, (part, name)


if __name__ == "__main__":  # one of two workers
    work(int(sys.argv[3]), sys.argv[1], sys.argv[2])
