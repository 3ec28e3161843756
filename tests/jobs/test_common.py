"""Pools that fit the cluster."""

import pytest

from jobs.common import Pool, Resources, fit_pools
from models.errors import InputError


def fit(cpus, gpus=0, units=1000, on_gpu=None, **wishes) -> list[Pool]:
    requests = [
        Pool("generators", wishes.get("generators"), gpus=wishes.get("gpus_per_generator")),
        Pool("detectors", wishes.get("detectors"), gpus=wishes.get("gpus_per_detector")),
        Pool("scorers", cpus=0.25),
        Pool("writers", cpus=0.25),
    ]
    return fit_pools(requests, Resources(cpus, gpus, 1), gpus > 0 if on_gpu is None else on_gpu, units)


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64, 200])
@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("units", [1, 5, 1000])
def test_pools_fit_any_cluster(cpus, gpus, units):
    pools = fit(cpus, gpus, units)
    assert sum(pool.size * pool.cpus for pool in pools) <= cpus
    assert sum(pool.size * pool.gpus for pool in pools) <= gpus
    assert all(1 <= pool.size <= units for pool in pools)
    assert all(pool.cpus > 0 for pool in pools)


def test_every_cpu_and_every_gpu_is_used_by_both_heavy_stages():
    assert [pool.size for pool in fit(8)] == [8, 8, 1, 1]
    assert [(pool.size, pool.gpus) for pool in fit(32, 4)] == [(4, 0.5), (4, 0.5), (4, 0), (4, 0)]


def test_wishes_are_kept():
    pools = fit(16, 2, generators=3, gpus_per_generator=0.25, detectors=1, gpus_per_detector=1)
    assert [(pool.size, pool.gpus) for pool in pools[:2]] == [(3, 0.25), (1, 1)]
    # GPUs of the cluster can be asked for while the work runs on CPUs: simulated clusters have no CUDA.
    assert fit(16, 2, on_gpu=False, generators=1, gpus_per_generator=1)[0].gpus == 1


@pytest.mark.parametrize(
    "wishes",
    [
        {"gpus": 0, "on_gpu": False, "gpus_per_generator": 1},
        {"gpus": 0, "on_gpu": True},
        {"gpus": 2, "generators": 4, "gpus_per_generator": 1},
        {"gpus": 2, "gpus_per_generator": 3},
        {"gpus": 2, "gpus_per_generator": -0.5},
        {"gpus": 2, "generators": 3, "gpus_per_generator": 0.6, "gpus_per_detector": 0},  # two never share one
        {"gpus": 4, "generators": 1, "gpus_per_generator": 1.5, "gpus_per_detector": 0},
        {"generators": 0},
        {"generators": -1},
        {"detectors": 10**6},
    ],
)
def test_more_than_the_cluster_has_is_refused(wishes):
    with pytest.raises(InputError):
        fit(16, **wishes)


def test_the_plan_of_resources_reads_well():
    assert [str(pool) for pool in fit(2, 1)[:3]] == [
        "generators 1 x (0.75 CPU, 0.5 GPU)",
        "detectors 1 x (0.75 CPU, 0.5 GPU)",
        "scorers 1 x (0.25 CPU)",
    ]
