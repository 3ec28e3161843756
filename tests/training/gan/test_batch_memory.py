"""How many images a GPU computes at a time, and what a full memory says."""

import dataclasses
from pathlib import Path

import pytest
import torch

from passersby.errors import InputError
from tests.helpers.gan_trainings import make_tree, run, tiny
from training.gan import run as gan_loop
from training.gan.batch_memory import image_bytes, images_at_once, possible_parts
from training.gan.config import GanTraining
from training.gan.presets import preset

GB = 1e9


def person(name: str, **changes) -> GanTraining:
    return dataclasses.replace(preset(f"person-128x64-{name}", Path("data"), Path("out")), **changes)


def test_images_at_a_time_fit_the_card():
    r, t, two = (person(name) for name in ("r", "t", "2"))
    assert image_bytes(two) < image_bytes(t) < image_bytes(r)
    assert 32 * image_bytes(r) > 24 * GB  # an L4 or an A10G has no room for config R's whole batch
    sizes = [images_at_once(r, free * GB) for free in (1, 8, 16, 24, 48, 80, 140)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1  # the smallest part is tried even so
    assert sizes[3] in (8, 16)
    assert sizes[-1] == 32
    assert set(sizes) <= set(possible_parts(r))
    for config in (r, t, two):
        for free in (8, 24, 80):
            at_once = images_at_once(config, free * GB)
            assert at_once * image_bytes(config) < free * GB
    assert image_bytes(person("r", precision="float32")) > 1.5 * image_bytes(r)
    assert image_bytes(person("r", kernel="triton")) < image_bytes(r)


def test_parts_keep_what_belongs_together():
    assert possible_parts(person("t", batch=24)) == [24, 12, 8, 4, 3, 2, 1]  # groups of the minibatch deviation
    assert possible_parts(person("t", batch=32, workers=4)) == [8, 4, 2, 1]
    assert possible_parts(person("2", batch=32, pairs=True)) == [32, 16, 8]
    assert images_at_once(person("r", batch_gpu=2), 1 * GB) == images_at_once(person("r", batch_gpu=2), 140 * GB) == 2
    assert images_at_once(person("r", one_pass=True), 1 * GB) == 32


@pytest.mark.parametrize(
    ("error", "changes", "way_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), {}, "give --batch-gpu 4; the same"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), {"batch_gpu": 2}, "give --batch-gpu 1; the same"),
        (torch.OutOfMemoryError("CUDA out of memory"), {"batch_gpu": 1}, "give a smaller --batch in another --out, or"),
        (torch.OutOfMemoryError("CUDA out of memory"), {"one_pass": True}, "leave out --one-pass, or"),
    ],
)
def test_a_full_memory_is_one_line(tmp_path, monkeypatch, error, changes, way_out):
    def full(*_):
        raise error

    monkeypatch.setattr(gan_loop, "train_iteration", full)
    tree = tmp_path / "tree"
    tree.mkdir()
    with pytest.raises(InputError, match=f"^the GPU's memory is full: {way_out}") as raised:
        run(tiny(make_tree(tree), tmp_path / "out", **changes))
    assert "\n" not in str(raised.value)


def test_other_errors_are_not_taken_for_a_full_memory(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gan_loop, "train_iteration", broken)
    (tmp_path / "tree").mkdir()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(tiny(make_tree(tmp_path / "tree"), tmp_path / "out"))
