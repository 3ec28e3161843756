"""Folders that an earlier version has begun go on with this one: nothing is refused, begun anew or made twice.

The folders are in tests/data/continuation, whose README.md says how they were made. Jobs are called by their files and
command lines alone, in this process: modules may move, these may not change.
"""

import json
import lzma
import runpy
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers.drivers import stages_here

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "tests" / "data" / "continuation"
COMMANDS = runpy.run_path(str(KEPT / "make.py"))["COMMANDS"]
NUMBERS = ("detector_score", "ssim")  # of pictures that another machine makes, nearly the same


@pytest.fixture
def go_on(call, tmp_path) -> Callable:
    """go_on(name, *more): the command that made the folder, with further options; it must end well. Its stdout."""

    def gone(name: str, *more: object) -> str:
        code, said, wrong = call(*words_of(name, tmp_path), *more)
        assert code == 0, wrong
        return said

    return gone


@pytest.fixture
def refuses(call, tmp_path) -> Callable:
    """refuses(name, reason, *more): with these other options the command ends with one line, which has the reason."""

    def refused(name: str, reason: str, *more: object) -> None:
        code, _, wrong = call(*words_of(name, tmp_path), *more)
        assert code == 2
        assert reason in wrong
        assert wrong.count("\n") == 1

    return refused


def words_of(name: str, here: Path) -> list[str]:
    return COMMANDS[name].replace("{HERE}", str(here)).split()


def bring(here: Path, *names: str) -> None:
    """Copy what is kept under these names: large files unpacked, {HERE} replaced."""
    files = [path for name in names for path in (KEPT / name).rglob("*") if path.is_file()]
    files += [path for name in names for path in (KEPT / name, KEPT / f"{name}.xz") if path.is_file()]
    for path in files:
        content, copy = path.read_bytes(), here / path.relative_to(KEPT)
        if path.suffix == ".xz":
            content, copy = lzma.decompress(content), copy.with_suffix("")
        if copy.suffix in (".json", ".jsonl", ".txt"):
            content = content.replace(b"{HERE}", str(here).encode())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)


def state(*paths: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and contents of files, or of all files in folders."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def pictures_of(shard: Path) -> np.ndarray:
    images = pq.read_table(shard)["image"].to_pylist()
    return np.stack([cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).astype(int) for image in images])


def test_a_drawn_tree(go_on, refuses, tmp_path):
    bring(tmp_path, "crowd")
    tree, record = tmp_path / "crowd", json.loads((tmp_path / "crowd/toy_crowd.json").read_text())
    assert "is finished: 39 pictures, nothing to do" in go_on("crowd")
    refuses("crowd", "options.junk = 1, not 2", "--junk", 2)
    missing = sorted((tree / "query").iterdir())[0]
    picture = cv2.imread(str(missing)).astype(int)
    missing.unlink()
    rest = state(tree / "query", tree / "bounding_box_train", tree / "bounding_box_test")
    assert "1 of 39 pictures to draw" in go_on("crowd")
    assert state(*rest) == rest
    assert np.abs(cv2.imread(str(missing)) - picture).mean() < 1  # another processor may round pixels differently
    made = json.loads((tree / "toy_crowd.json").read_text())
    assert {**made, "sha256": None} == {**record, "sha256": None}


@pytest.mark.slow
def test_a_run_of_generation(ray_cluster, call, go_on, refuses, tmp_path):
    bring(tmp_path, "network.safetensors", "run")
    run = tmp_path / "run"
    plan, manifest = (run / "plan.json").read_bytes(), pq.read_table(run / "manifest.parquet")
    shards = sorted(run.glob("shards/*/*.parquet"))
    assert len(shards) == 4
    pictures = pictures_of(shards[2])
    for path in (shards[2], run / "manifest.parquet", run / "summary.json"):  # as a killed run leaves it
        path.unlink()
    rest = state(*(path for path in shards if path != shards[2]))
    refuses("run", "truncation_psi is 0.7, not 0.5", "--truncation-psi", 0.5)
    with stages_here():
        assert "4 units, 1 to make" in go_on("run")
    assert state(*rest) == rest
    assert (run / "plan.json").read_bytes() == plan
    made = pq.read_table(run / "manifest.parquet")
    assert made.schema.equals(manifest.schema, check_metadata=True)
    old, new = manifest.to_pylist(), made.to_pylist()
    assert [row for row in new if row["person"] != 2] == [row for row in old if row["person"] != 2]
    for before, after in zip(old, new, strict=True):
        exact = before.keys() - set(NUMBERS)
        assert {name: after[name] for name in exact} == {name: before[name] for name in exact}
        assert [after[name] for name in NUMBERS] == pytest.approx([before[name] for name in NUMBERS], abs=1e-3)
    assert np.abs(pictures_of(shards[2]) - pictures).mean() < 0.5  # another person's differ by ten
    code, said, wrong = call("verify", run, "--network", tmp_path / "network.safetensors", "--sample", 6)
    assert code == 0, said + wrong
    assert "whole: 4 people x 3 variants = 12 images in 4 shards" in said
    assert "every unit is there" in go_on("run")


@pytest.mark.slow
def test_a_gan_training(call, go_on, refuses, tmp_path):
    bring(tmp_path, "crowd", "gan")
    out = tmp_path / "gan"
    assert [folder.name for folder in out.glob("checkpoints/*")] == ["000000008"]
    before = state(out / "snapshots")
    refuses("gan", "holds a training with --gamma 0.1, not 0.5", "--gamma", 0.5)
    said = go_on("gan", "--kimg", 0.016, "--snapshot-kimg", 100)  # both may change
    assert "going on at kimg 0.0" in said
    assert f"last snapshot: {out}/snapshots/000000016" in said
    assert state(*before) == before
    stored = out / "snapshots/000000008/network.safetensors"
    code, _, wrong = call("preview", "--network", stored, "--out", tmp_path / "p.png", "--people", 1, "--variants", 1)
    assert code == 0, wrong
    state_file = out / "checkpoints/000000016/training_state.pt"
    assert torch.load(state_file, weights_only=True)["images_seen"] == 16


@pytest.mark.slow
def test_a_reid_training(go_on, refuses, tmp_path):
    bring(tmp_path, "crowd", "run", "reid")
    out = tmp_path / "reid"
    step = int(next(out.glob("checkpoints/*")).name)
    refuses("reid", "holds a training with --lr 0.05, not 0.1", "--lr", 0.1)
    said = go_on("reid")
    assert f"going on from step {step}" in said
    assert f"network: {out}/network.safetensors" in said
    assert torch.load(out / "checkpoints/000000012/training_state.pt", weights_only=True)["step"] == 12
    assert "is finished: nothing to do" in go_on("reid")


@pytest.mark.slow
def test_an_encoder_training(go_on, refuses, tmp_path):
    bring(tmp_path, "crowd", "network.safetensors", "encoder")
    out = tmp_path / "encoder"
    step = int(next(out.glob("checkpoints/*")).name)
    refuses("encoder", "holds a training with --seed 0, not 1", "--seed", 1)
    said = go_on("encoder")
    assert f"going on from step {step}" in said
    assert f"encoder: {out}/encoder.safetensors" in said
    assert torch.load(out / "checkpoints/000000008/training_state.pt", weights_only=True)["step"] == 8
    assert "is finished: nothing to do" in go_on("encoder")


@pytest.mark.slow
def test_an_inversion(ray_cluster, go_on, refuses, tmp_path):
    bring(tmp_path, "crowd", "network.safetensors", "encoder.safetensors", "inversion")
    out = tmp_path / "inversion"
    plan, latents = (out / "plan.json").read_bytes(), pq.read_table(out / "latents.parquet")
    shards = sorted(out.glob("shards/*/*.parquet"))
    assert len(shards) == 3
    for path in (shards[1], out / "latents.parquet", out / "summary.json"):  # as a killed run leaves it
        path.unlink()
    rest = state(shards[0], shards[2])
    refuses("inversion", "refine_steps is 2, not 3", "--refine-steps", 3)
    with stages_here():
        assert "3 units, 1 to make" in go_on("inversion")
    assert state(*rest) == rest
    assert (out / "plan.json").read_bytes() == plan
    made = pq.read_table(out / "latents.parquet")
    assert made.schema.equals(latents.schema)
    for before, after in zip(latents.to_pylist(), made.to_pylist(), strict=True):
        codes = [np.array(row.pop("w"), np.float64) for row in (before, after)]
        assert codes[1] == pytest.approx(codes[0], abs=1e-2)
        if after["person"] != 1:
            assert after == before
        assert {name: after[name] for name in ("path", "person", "status")} == {
            name: before[name] for name in ("path", "person", "status")
        }
    assert "every unit is there" in go_on("inversion")


@pytest.mark.slow
def test_a_sweep(ray_cluster, call, go_on, refuses, tmp_path):
    bring(tmp_path, "crowd", "run", "sweep")
    out = tmp_path / "sweep"
    finished, begun = (out / "trials" / f"level-{level:04d}-seed-0" for level in (0, 2))
    assert (finished / "result.json").exists()
    assert [folder.name for folder in begun.glob("checkpoints/*")] == ["000000016"]
    before = state(finished)
    refuses("sweep", "steps is 20, not 21", "--steps", 21)
    assert "1 of 2 trials are finished, 1 to run" in go_on("sweep")
    assert state(finished) == before
    assert "going on from step 16" in (begun / "log.txt").read_text()
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert [(row["trial"], row["steps"]) for row in rows] == [("level-0000-seed-0", 20), ("level-0002-seed-0", 20)]
    assert rows[0] == json.loads((finished / "result.json").read_text())["row"]
    about = ["--network", finished / "network.safetensors", "--data", tmp_path / "crowd", "--out", tmp_path / "ranked"]
    code, _, wrong = call("evaluate_reid", *about, "--here", "--device", "cpu")
    assert code == 0, wrong
    assert "2/2 trials done" in go_on("sweep")
