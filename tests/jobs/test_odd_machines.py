"""Whole jobs, with a Ray of their own, on machines where nothing is as usual."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from passersby import weights
from tests.helpers.nobody import as_nobody

ROOT = Path(__file__).parents[2]
NAMES = ("actors", "datasets", "jobs", "passersby", "pipeline", "reporting", "training", "tune", "models", "utils")


@pytest.fixture
def odd():
    """A folder of /tmp that everybody can write, and in it another project whose packages have the names of ours."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o777)
        for package in NAMES:
            (folder / "other" / package).mkdir(parents=True)
            (folder / "other" / package / "__init__.py").write_text(f"raise SystemExit('{package} of another project')")
        (folder / "other" / "jobs" / "common.py").write_text("")
        (folder / ("scratch" + "-of-a-batch-system" * 3)).mkdir(mode=0o777)
        (folder / ("scratch" + "-of-a-batch-system" * 3)).chmod(0o777)
        yield folder


def started(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A job, started from within the other project, which is on PYTHONPATH too, with a long TMPDIR, by a user without a
    name and a home."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder / "other"),
        "TMPDIR": str(next(folder.glob("scratch*"))),
        "HOME": "/nonexistent",
        "PASSERSBY_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
    }
    command = [sys.executable, str(ROOT / "jobs" / words[0]), *words[1:]]
    done = as_nobody(command, cwd=folder / "other", env=environment, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
@pytest.mark.ray
def test_people_are_made_by_a_user_without_name_and_home_in_a_folder_with_any_letters(odd, network):
    """With another project's packages in the current folder and on PYTHONPATH, and a TMPDIR too long for Ray."""
    for source, name in ((weights.get("yolov4-tiny"), "yolo.weights"), (network, "network.safetensors")):
        (odd / name).write_bytes(source.read_bytes())
    (odd / "yolo.cfg").write_bytes(weights.get("yolov4-tiny").with_suffix(".cfg").read_bytes())
    out = odd / "José 夜"
    words = ["generate.py", "--out", str(out), "--network", str(odd / "network.safetensors"), "--people", "2"]
    words += ["--variants", "2", "--yolo-weights", str(odd / "yolo.weights"), "--detector-threshold", "0"]
    words += ["--generators", "1", "--detectors", "1"]
    done = started(odd, *words)
    assert "note: HOME /nonexistent is no folder: what libraries keep" in done.stderr
    assert "letters that Ray's sockets allow: Ray keeps its session in /tmp" in done.stderr
    assert "no more metrics" not in done.stderr
    assert json.loads((out / "summary.json").read_text())["images"] == 4


@pytest.mark.slow
@pytest.mark.ray
def test_a_training_on_ray_takes_its_own_packages_and_needs_no_home(odd, tmp_path):
    people, random = tmp_path / "people", np.random.default_rng(0)
    for name in (f"person {person}/{index}.png" for person in range(3) for index in range(6)):
        (people / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(people / name), random.integers(0, 255, (32, 16, 3), np.uint8))
    words = ["--preset", "tiny", "--data", str(people), "--out", str(odd / "José 夜"), "--workers", "1"]
    done = started(odd, "train_reid.py", *words, "--batch", "8", "--steps", "2", "--threads", "1")
    assert "1 x {'CPU': 1}" in done.stdout
    assert (odd / "José 夜" / "network.safetensors").exists()
