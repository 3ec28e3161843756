"""What stands below the pipeline needs neither Ray nor the libraries of jobs and metrics: each module can be imported
without them."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

BLOCKED = {"ray", "tyro", "lpips", "torch_fidelity", "timm", "huggingface_hub", "onnxruntime", "tqdm"}
find_spec = PathFinder.find_spec


def without_blocked(name, path=None, target=None):
    return None if name.partition(".")[0] in BLOCKED else find_spec(name, path, target)


PathFinder.find_spec = without_blocked  # as if they were not installed: PyTorch asks for the specs of some
failed = []
for folder in sys.argv[1:]:
    package = importlib.import_module(folder)
    names = [folder, *(module.name for module in pkgutil.walk_packages(package.__path__, f"{folder}."))]
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            failed.append(f"{name}: {error}")
    assert not BLOCKED & set(sys.modules)
    assert len(names) > 5
print(*failed, sep="\\n")
sys.exit(bool(failed))
"""


@pytest.mark.slow
def test_every_module_can_be_imported_without_ray_and_the_jobs_libraries():
    folders = ["passersby", "training", "actors"]  # in the order of imports: one process loads PyTorch once
    done = subprocess.run([sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stages_of_a_run_load_nothing_that_takes_seconds():
    # Every actor of a run is a process of its own. These libraries took as long to load as all that a stage needs.
    program = """
import sys
import actors.pedestrian_detector, actors.shard_writer, actors.similarity_scorer, actors.style_mixer
from passersby.stylegan3.generator import Generator
slow = {"torch._dynamo", "torchvision", "scipy.signal", "scipy.stats", "sympy", "matplotlib"} & set(sys.modules)
assert not slow, slow
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
