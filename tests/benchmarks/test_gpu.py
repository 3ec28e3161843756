"""The command that measures a GPU, on a CPU with tiny sizes: every part, and what a run keeps when parts fail."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import evaluation, generation, iterations, layers, learning
from benchmarks.gpu_parts.common import TINY, Bench, Figure
from passersby.errors import InputError
from passersby.stylegan3.ops.filtered_lrelu import plain


@pytest.fixture
def bench():
    threads = torch.get_num_threads()
    yield Bench("cpu", TINY, 1)
    torch.set_num_threads(threads)


def figures(part) -> dict[str, Figure]:
    """The figures of a part by their names, which are all different."""
    made = [figure for figure in part if isinstance(figure, Figure)]
    names = {figure.name: figure for figure in made}
    assert len(names) == len(made)
    for figure in made:
        assert figure.note if figure.value is None else math.isfinite(figure.value)
    return names


def test_ceilings_give_the_speeds_of_floors(bench):
    names = figures(layers.ceilings(bench))
    assert names["copy in memory"].value == bench.bytes_per_second / 1e12 > 0
    assert bench.flop_per_second > 0
    work = bench.work(lambda: torch.ones(1000) + 1)
    assert bench.floor(work) == pytest.approx(sum(work.bytes.values()) / bench.bytes_per_second)


def test_every_layer_is_measured_by_every_kernel_that_runs_here(bench):
    bench.bytes_per_second, bench.flop_per_second = 1e9, 1e9
    names = figures(layers.layers(bench))
    for kernel in ("matmul", "plain"):
        both = names[f"T: filtered leaky ReLUs, {kernel}, both passes"]
        assert both.floor > 0
        parts = [f.value for name, f in names.items() if name.startswith("T L") and name.endswith("both passes")]
        assert both.value <= 1.001 * sum(parts)
        assert names[f"T: filtered leaky ReLUs, {kernel}, greatest error of a layer"].value < 1e-5
    assert names["R: filtered leaky ReLUs, triton"].value is None  # its note says why
    assert not bench.slow_layers


def test_the_discriminators_filters(bench):
    bench.bytes_per_second = bench.flop_per_second = 1e9
    *blocks, total = layers.filters(bench)
    assert [block.name.split(",")[0] for block in blocks] == [
        "filter of 32 x 16 x 8 channels", "filter of 16 x 8 x 16 channels"
    ]  # fmt: skip
    assert total.value == pytest.approx(sum(block.value for block in blocks))
    assert blocks[0].floor == pytest.approx(4 * 4 * 4 * 32 * 16 * 8 / 1e9 * 1e3)


def test_a_layer_that_is_far_too_slow_is_given_up(bench, monkeypatch):
    monkeypatch.setattr(layers, "LAYER_SECONDS", 0.0)
    whole = []
    up = plain._up
    monkeypatch.setattr(plain, "_up", lambda x, *rest: whole.append(x.shape[0]) or up(x, *rest))
    names = figures(layers.layers(bench))
    assert set(whole) == {1}  # never the batch
    assert "estimated" in names["T: filtered leaky ReLUs, plain, forward"].note
    assert {"t plain", "r plain", "t matmul", "r matmul"} == bench.slow_layers
    assert [str(case) for case in iterations.cases(bench)] == ["2: iteration of batch 4, float16"]


@pytest.mark.slow
def test_iterations_say_seconds_memory_and_work(bench, monkeypatch):
    bench.bytes_per_second, bench.flop_per_second = 1e9, 1e9
    chosen = iterations.cases(bench)[:1]
    monkeypatch.setattr(iterations, "cases", lambda bench: chosen)
    figure, memory = iterations.iterations(bench)
    assert (figure.name, figure.unit) == ("T: iteration of batch 4, matmul, float16", "s/kimg")
    assert figure.value > 0
    assert figure.floor > 0
    assert " calls, " in figure.note
    assert memory.unit == "GB"


def test_the_cases_of_iterations_begin_with_the_aims(bench):
    named = [str(case) for case in iterations.cases(bench)]
    assert named[:2] == ["T: iteration of batch 4, matmul, float16", "R: iteration of batch 4, matmul, float16"]
    assert "2: iteration of batch 4, float16" in named
    assert "T: iteration of batch 4, matmul, bfloat16" in named
    assert len(set(named)) == len(named)


def test_what_does_not_fit_into_memory_is_a_line(bench, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    bench.peak_gigabytes = lambda: 1.0
    monkeypatch.setattr(iterations, "Training", fail)
    (first, *_) = iterations.iterations(bench)
    assert (first.value, first.note) == (None, "does not fit into the device's memory")


def test_a_generation_job_by_its_actors_with_equal_bytes(bench):
    names = figures(generation.generation(bench, None))
    assert names["T: StyleMixer, 2 people x 3 variants, kernel auto"].value > 0
    assert names["T: StyleMixer, 2 people x 3 variants, kernel auto: equal bytes in two calls"].value == 1
    assert names["PedestrianDetector, 2 people x 3 variants"].value > 0
    assert names["SimilarityScorer, 2 people x 3 variants"].value > 0


@pytest.mark.slow
def test_unequal_bytes_are_seen(bench, monkeypatch):
    calls = iter(range(100))
    monkeypatch.setattr(generation, "_bytes", lambda table: [next(calls)])
    names = figures(generation.generation(bench, None))
    assert names["T: StyleMixer, 2 people x 3 variants, kernel auto: equal bytes in two calls"].value == 0


def test_generators_alone(bench):
    names = figures(layers.network(bench))
    assert names["2: generator alone, batch 2, matmul"].value > 0
    assert names["R: generator alone, batch 2, triton"].note


def test_formats_are_compared_with_float32(bench, monkeypatch):
    assert figures(iterations.formats(bench))["formats"].note  # a CPU has none
    for part in (iterations._gradients, iterations._codes):
        names = figures(part(bench, "t"))
        # On a CPU all formats are float32.
        assert [figure.value for figure in names.values()] == pytest.approx([1.0] * len(names), abs=1e-3)
    assert max(figure.value for figure in figures(iterations._images(bench, "2")).values()) < 1e-6


def test_reid_training_beside_a_plain_loop(bench):
    names = figures(learning.reid(bench))
    assert [figure.unit for figure in names.values()] == ["images/s"] * 4
    assert all(figure.value > 0 for figure in names.values())


@pytest.mark.slow
def test_encoder_refinement_and_tuning(bench):
    names = figures(learning.inversion(bench))
    assert [figure.unit for figure in names.values()] == ["images/s", "s/picture", "s/person"]


def test_ranking_and_scores(bench):
    names = figures(evaluation.ranking(bench)) | figures(evaluation.scores(bench))
    assert names["ranking 20 x 60, cosine"].value > 0
    assert names["Inception features, from arrays to arrays"].value > 0


@pytest.mark.slow
def test_a_profile_is_a_text(bench):
    (table,) = [figure for figure in iterations.profile(bench) if isinstance(figure, str)]
    assert "convolution" in table


def test_late_parts_measure_nothing_more(bench):
    bench.ends = 0.0
    for part in (iterations.iterations(bench), learning.reid(bench), layers.network(bench)):
        assert {figure.value for figure in part} == {None}


# ---- The run


def run(out: Path, *arguments: str) -> tuple[int, dict]:
    code = gpu.main(gpu.parsed(["--device", "cpu", "--tiny", "--threads", "1", "--out", str(out), *arguments]))
    return code, json.loads((out / "gpu.json").read_text())


def test_a_run_ends_with_a_table(tmp_path, capsys):
    code, results = run(tmp_path / "new", "--parts", "ceilings", "ranking", "--commit", "abc")
    assert code == 0
    assert [(part["part"], part["state"]) for part in results["parts"]] == [("ceilings", "done"), ("ranking", "done")]
    assert (results["commit"], results["minutes"]) == ("abc", 10)
    table = (tmp_path / "new" / "table.md").read_text()
    assert "| what | measured | bytes and FLOP allow | aim | note |" in table
    assert table.count("\n| ") == 1 + 4 + 2
    assert table in capsys.readouterr().out


def test_a_part_that_fails_costs_no_other_part(tmp_path, monkeypatch):
    def fail(bench):
        yield Figure("before", 1.0, "s")
        raise ValueError("wrong")

    monkeypatch.setattr(layers, "ceilings", fail)
    code, results = run(tmp_path, "--parts", "ceilings", "ranking")
    assert code == 1
    first, second = results["parts"]
    assert (first["state"], first["figures"]) == ("failed", [{"name": "before", "value": 1.0, "unit": "s"}])
    assert first["error"].endswith("ValueError: wrong\n")
    assert second["state"] == "done"
    assert "| the part ceilings | | | | failed: ValueError: wrong |" in (tmp_path / "table.md").read_text()


def test_a_run_that_is_cut_off_keeps_its_figures(tmp_path, monkeypatch):
    def stop(bench):
        yield Figure("before", 1.0, "s")
        seen.append(json.loads((tmp_path / "gpu.json").read_text())["parts"][0]["figures"][0]["name"])
        raise KeyboardInterrupt

    seen: list[str] = []
    monkeypatch.setattr(layers, "ceilings", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--parts", "ceilings", "ranking")
    assert seen == ["before"]  # already on the disk
    assert "| the part ceilings | | | | was cut off |" in (tmp_path / "table.md").read_text()


def test_parts_share_the_time_by_their_value(tmp_path, monkeypatch):
    lefts = {}

    def note(name):
        def part(bench, **_):
            lefts[name] = bench.ends - gpu.time.monotonic()
            yield Figure("nothing", 0.0, "s")

        return part

    monkeypatch.setattr(layers, "ceilings", note("ceilings"))
    monkeypatch.setattr(evaluation, "ranking", note("ranking"))
    run(tmp_path, "--parts", "ceilings", "ranking", "--minutes", "2")
    assert lefts["ceilings"] == pytest.approx(60, abs=5)
    assert lefts["ranking"] == pytest.approx(120, abs=5)  # what the first part left over


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "add --tiny"),
        (["--device", "cpu", "--tiny", "--minutes", "0"], "--minutes 0"),
        (["--device", "cpu", "--tiny", "--yolo-weights", "nowhere"], "--yolo-weights nowhere"),
    ],
)
def test_wrong_options_are_named(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        gpu.parsed(["--out", str(tmp_path / "new"), *arguments])
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    with pytest.raises(InputError, match="no CUDA device"):
        gpu.parsed(["--out", str(tmp_path)])


def test_figures_of_an_earlier_run_are_kept(tmp_path):
    (tmp_path / "gpu.json").write_text("{}")
    with pytest.raises(InputError, match="earlier run"):
        gpu.parsed(["--device", "cpu", "--tiny", "--out", str(tmp_path)])


@pytest.mark.slow
def test_it_runs_where_only_common_packages_are(tmp_path):
    # All but the part that takes minutes here; `profile` runs one of its iterations.
    names = [name for name in gpu.PART_NAMES if name != "iterations"]
    blocked = ["ray", "tyro", "lpips", "torch_fidelity", "timm", "tqdm"]
    program = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({blocked}))
sys.argv = ["gpu.py", "--device", "cpu", "--tiny", "--out", {str(tmp_path)!r}, "--minutes", "60", "--parts", *{names}]
runpy.run_path({gpu.__file__!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == len(names)
