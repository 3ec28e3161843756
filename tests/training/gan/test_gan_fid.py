"""FID inside the training loop, with the real inception network: what is compared, and the best snapshot kept."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from passersby import weights
from passersby.metrics.fid import fid
from passersby.perception.inception import load_inception
from passersby.stylegan3 import load_network, to_uint8
from reporting.curves import read_history
from training.gan.config import GanTraining
from training.gan.run import train
from training.gan.start import BEST, NETWORK, claim_folder, is_best
from training.gan.validation import images_wanted
from training.log import HISTORY

SEED_OF_FAKES = 2**31 - 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two snapshots of a tiny training with 16 images each for FID, against its 12 training images."""
    root = tmp_path_factory.mktemp("fid")
    (root / "market/bounding_box_train").mkdir(parents=True)
    random = np.random.default_rng(0)
    reals = random.integers(0, 255, (12, 16, 8, 3), np.uint8)
    for index, image in enumerate(reals):
        path = root / f"market/bounding_box_train/{index % 3 + 1:04d}_c1s1_{index:06d}_00.png"
        cv2.imwrite(str(path), image[:, :, ::-1])
    out = root / "out"
    config = GanTraining(
        data=root / "market",
        out=out,
        height=16,
        width=8,
        channel_base=128,
        channel_max=16,
        batch=4,
        kimg=0.016,
        snapshot_kimg=0.008,
        fid_images=16,
        fid_reference="training",
        validation_people=0,
        workers=0,
    )
    claim_folder(config)
    inception = weights.get("inception-2015").read_bytes()
    train(config, torch.device("cpu"), inception=inception)
    names = sorted((root / "market/bounding_box_train").iterdir())
    ordered = np.stack([cv2.imread(str(name))[:, :, ::-1] for name in names])
    return out, load_inception(inception), ordered


@pytest.mark.slow
def test_it_is_the_fid_of_the_snapshots_own_images(trained):
    out, inception, reals = trained
    history = {record["kimg"]: record["fid"] for record in read_history(out / HISTORY) if record.get("fid")}
    assert set(history) == {0.008, 0.016}
    real = inception(np.ascontiguousarray(reals))
    for kimg, value in history.items():
        network = load_network(out / "snapshots" / f"{round(kimg * 1000):09d}" / NETWORK)
        assert network.record["figures"]["fid"] == value
        z = np.random.default_rng(SEED_OF_FAKES).standard_normal((16, 512), np.float32)
        with torch.inference_mode():
            images = to_uint8(network.generator(torch.from_numpy(z))).numpy()
        # The same numbers in other batches: features agree to 1e-5, single pixels may round to the other side.
        assert fid(real, inception(images)) == pytest.approx(value, rel=1e-3)


@pytest.mark.slow
def test_the_best_snapshot_is_kept(trained):
    out, *_ = trained
    history = {record["fid"]: record["kimg"] for record in read_history(out / HISTORY) if record.get("fid")}
    best: Path = out / "snapshots" / f"{round(history[min(history)] * 1000):09d}" / NETWORK
    assert (out / BEST).read_bytes() == best.read_bytes()
    log = (out / "log.txt").read_text()
    assert "against 12 images of training people, the best so far" in log
    assert is_best([{"fid": 3.0}, {"kimg": 1.0}], 2.9)
    assert not is_best([{"fid": 3.0}], 3.0)
    assert not is_best([], float("nan"))


def test_how_many_images_fid_takes_where_nobody_says():
    config = GanTraining(data=Path("data"), out=Path("out"))
    assert (images_wanted(config, on_gpu=True), images_wanted(config, on_gpu=False)) == (10_000, 0)
