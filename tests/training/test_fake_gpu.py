"""Every step on a GPU that is not there: right devices and formats, and the host never waits for the device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.fake_cuda import build

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    "gan t", "gan r, two rounds, labels", "gan 2, two rounds", "gan 2, pairs, one pass", "reid",
    "reid, separate statistics", "reid, float16", "reid, changes", "pivotal tuning", "refinement", "encoder",
    "generation",
)  # fmt: skip
OTHERS = ("detector", "similarity", "inception", "ranking")  # they hand their results to the host
# Operations for which PyTorch has no deterministic way on a GPU (`torch.use_deterministic_algorithms`).
UNREPEATABLE = {
    "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "grid_sampler_2d_backward",
    "reflection_pad2d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward",
    "upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward", "max_pool2d_with_indices_backward",
    "nll_loss_forward", "nll_loss2d_forward", "median", "histc", "bincount", "put_",
}  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> dict[str, dict]:
    """The record of each step, by its name."""
    if not torch.backends.cuda.is_built():
        pytest.skip("this PyTorch is built without CUDA")
    library, reason = build(tmp_path_factory.mktemp("fake_cuda"))
    if library is None:
        pytest.skip(reason)
    words = [sys.executable, "-W", "ignore", "-m", "tests.helpers.fake_cuda.steps", str(library)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {record["step"]: record for record in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS + OTHERS)
def test_every_step_runs_on_a_gpu(records, step):
    assert "error" not in records[step], records[step]["error"]
    assert {device for _, device in records[step]["results"].values()} <= {"cuda"}
    assert sum(records[step]["operations"].values()) > 10


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_no_step_waits_for_the_gpu(records, step):
    kinds = [kind.split(" at ")[0] for kind in records[step]["waits"]]
    # Pivotal tuning of a person reads the losses of all steps once, after the last one.
    assert kinds == (["copy to the host"] if step == "pivotal tuning" else []), records[step]["waits"]
    assert set(records[step]["waits"].values()) <= {1}


@pytest.mark.slow
def test_the_census_sees_what_waits(records):
    kinds = [kind.split(" at ")[0] for kind in records["all waits"]["waits"]]
    assert sorted(kinds) == sorted(
        ["value read", "copy to the host", "copy from pageable memory", "blocking copy to the device"]
        + ["size depends on values: nonzero", "size depends on values: mask"]
        + ["copy from pageable memory: indices", "synchronize"]
    )


@pytest.mark.slow
def test_no_step_of_a_gan_has_an_operation_that_cannot_be_repeated(records):
    found = {step: UNREPEATABLE & records[step]["operations"].keys() for step in STEPS if step.startswith("gan")}
    assert found.pop("gan t") == {"grid_sampler_2d_backward"}  # of turned images, as the help of --deterministic says
    assert set().union(*found.values()) == set()
