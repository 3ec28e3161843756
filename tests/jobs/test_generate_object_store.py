"""The main job and refilter with --out on an object store that dies in the middle and comes back."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datasets.runs.run import shard_name
from datasets.storage import lock as lease
from datasets.storage.output import Output
from jobs import generate, refilter
from passersby.errors import InputError
from tests.helpers import object_store as helper
from tests.helpers.drivers import stages_here


@pytest.fixture(scope="module", autouse=True)
def nothing_around():
    with pytest.MonkeyPatch.context() as patch:
        helper.forget_environment(patch)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with helper.serve(tmp_path_factory.mktemp("store")) as running:
        yield running


def config(out: str, network: Path, **changes) -> generate.Config:
    # Workers have the environment of the time when Ray began: all they need stands in the address.
    settings = {"people": 3, "variants": 3, "seed": 5, "detector_threshold": 0.0, "generators": 1, "detectors": 1}
    return generate.Config(out=out, network=network, **(settings | changes))


@pytest.fixture(scope="module")
def broken_run(store, network, ray_cluster) -> tuple[generate.Config, str]:
    """A run whose store died when the plan was written, finished by the same command; and what the first said."""
    store.make_bucket("people")
    gate = helper.Gate(store.port)
    options = config(store.uri("people/run", port=gate.port), network)

    class Dying(Output):
        def write(self, name: str, content: bytes) -> None:
            super().write(name, content)
            if name == "plan.json":
                gate.shut()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "Output", Dying)
        patch.setattr(lease, "BEAT_SECONDS", 1.0)  # the dead run cannot give its folder back: it is waited for
        try:
            said = f"{generate.main(options)} units failed"
        except InputError as error:
            said = str(error)
        gate.open()
        assert {name for name in store.objects("people") if name.endswith(".parquet")} == set()
        patch.setattr(generate, "Output", Output)
        assert not generate.main(options)
    yield options, said
    gate.shut()


@pytest.mark.slow
def test_a_run_whose_store_dies_is_finished_by_the_same_command(store, broken_run):
    options, said = broken_run
    assert "no answer from the store" in said or said == "1 units failed"
    output = Output(options.out)
    assert json.loads(output.read("summary.json"))["images"] == 9
    names = {name.removeprefix("run/") for name in store.objects("people")}
    assert {shard_name(unit) for unit in range(3)} < names
    assert {"plan.json", "manifest.parquet", "summary.json", "contact_sheet.png", "report.html"} < names


@pytest.mark.slow
def test_a_run_on_a_store_resumes_extends_refilters_and_then_does_nothing(store, broken_run, capsys):
    options = broken_run[0]
    output = Output(options.out)
    shard = output.read(shard_name(1))
    output.remove(shard_name(1))
    output.remove("summary.json")
    with stages_here():
        assert not generate.main(dataclasses.replace(options, people=4))
    assert output.read(shard_name(1)) == shard
    with output.open("manifest.parquet") as file:
        assert pq.read_table(file)["person"].to_pylist() == [person for person in range(4) for _ in range(3)]

    refilter.main(refilter.Config(out=options.out, name="strict", detector_threshold=0.9))
    assert output.exists("manifest-strict.parquet")

    before = len(store.requests())
    assert not generate.main(options)
    assert {request.split()[0] for request in store.requests()[before:]} <= {"GET", "HEAD"}

    printed = capsys.readouterr().out
    assert "report: s3://people/run/report.html" in printed
    everything = printed + output.read("report.html").decode() + output.read("plan.json").decode()
    assert not any(part in everything for part in store.admin)
