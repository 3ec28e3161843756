"""Inputs behind paths and URIs: fetched once, whole or not at all."""

import os
import time
from pathlib import Path

import pytest

from datasets.storage import addresses as stores
from datasets.storage.local_copy import local_copy
from datasets.storage.output import Output
from jobs.convert import ConvertConfig, main
from passersby.errors import InputError
from passersby.stylegan3.checkpoint import load_network
from tests.helpers import object_store as helper


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with helper.serve(tmp_path_factory.mktemp("store")) as running:
        running.make_bucket("bucket")
        yield running


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    helper.forget_environment(monkeypatch)
    monkeypatch.setenv("PASSERSBY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    return tmp_path / "cache"


def copies(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_paths_are_taken_as_they_are(tmp_path, cache):
    (tmp_path / "a network.pkl").write_bytes(b"x")
    path = tmp_path / "a network.pkl"
    assert local_copy(str(path), "--network") == path
    assert local_copy(path, "--network") == path
    assert local_copy(tmp_path, "--yolo-weights") == tmp_path
    assert local_copy(f"file://{tmp_path}/a%20network.pkl", "--network") == path
    assert not cache.exists()
    for missing in (tmp_path / "none.pkl", f"file://{tmp_path}/none.pkl"):
        with pytest.raises(InputError, match="--network .*none.pkl: no such file"):
            local_copy(missing, "--network")


def test_a_file_on_a_store_is_fetched_once_and_again_when_it_changes(store, cache):
    folder, address = Output(store.uri("bucket/one")), store.uri("bucket/one/network.pkl")
    content = os.urandom(3 << 20)
    folder.write("network.pkl", content)
    first = local_copy(address, "--network")
    assert (first.name, first.read_bytes()) == ("network.pkl", content)
    before = len(store.requests())
    assert local_copy(address, "--network") == first
    assert all(request.startswith("HEAD") for request in store.requests()[before:])
    changed = content[:-1] + bytes([content[-1] ^ 1])  # the same size, and perhaps within the same second
    folder.write("network.pkl", changed)
    second = local_copy(address, "--network")
    assert second != first
    assert second.read_bytes() == changed
    assert copies(cache) == ["network.pkl"] * 2


def test_files_that_lie_beside_come_along(store, cache):
    folder, address = Output(store.uri("bucket/two")), store.uri("bucket/two/yolo.weights")
    folder.write("yolo.weights", b"weights")
    with pytest.raises(InputError, match=r"--yolo-weights s3://.*: there is no file bucket/two/yolo\.cfg"):
        local_copy(address, "--yolo-weights", beside=(".cfg",))
    folder.write("yolo.cfg", b"[net]")
    path = local_copy(address, "--yolo-weights", beside=(".cfg",))
    assert path.with_suffix(".cfg").read_bytes() == b"[net]"
    folder.write("yolo.cfg", b"[NET]")
    path = local_copy(address, "--yolo-weights", beside=(".cfg",))
    assert path.with_suffix(".cfg").read_bytes() == b"[NET]"
    path.with_suffix(".cfg").unlink()
    assert local_copy(address, "--yolo-weights", beside=(".cfg",)).with_suffix(".cfg").read_bytes() == b"[NET]"


def test_a_store_that_dies_in_the_middle_leaves_no_copy(store, cache):
    content = os.urandom(30 << 20)
    Output(store.uri("bucket/three")).write("network.pkl", content)
    gate = helper.Gate(store.port, limit=1500)  # the questions about it pass, then reading begins
    address = store.uri("bucket/three/network.pkl", port=gate.port)
    with pytest.raises(InputError, match=r"^--network s3://\*\*\*@bucket/three/network\.pkl.*no answer from the store"):
        local_copy(address, "--network")
    assert copies(cache) == []
    assert not list(cache.rglob(".fetching-*"))
    gate.open()
    assert local_copy(address, "--network").read_bytes() == content
    gate.shut()


def test_what_is_not_there_or_not_allowed_is_one_line(store, cache, monkeypatch):
    Output(store.uri("bucket/four")).write("network.pkl", b"x")
    for address, message in (
        (store.uri("bucket/four/none.pkl"), r"there is no file bucket/four/none\.pkl"),
        (store.uri("bucket/four"), "there is no file bucket/four"),
        (store.uri("nobucket/network.pkl"), r"there is no file nobucket/network\.pkl"),
        (store.uri("bucket/four/network.pkl", ("AKIANOBODY", "hidden")), r"access denied.*AWS_ACCESS_KEY_ID"),
        (store.uri("bucket/four/network.pkl", None), "no credentials were found"),
        ("https://host/network.pkl", "https"),
    ):
        with pytest.raises(InputError, match=f"^--network {address.split(':')[0]}://.*{message}") as error:
            local_copy(address, "--network")
        assert "\n" not in str(error.value)
        assert not any(part in str(error.value) for part in (*store.admin, "hidden", "AKIANOBODY"))
    cache.write_text("a file where the cache folder should be")
    with pytest.raises(InputError, match="set PASSERSBY_CACHE"):
        local_copy(store.uri("bucket/four/network.pkl"), "--network")


def test_a_network_on_a_store_is_converted(store, tiny, tmp_path, capsys):
    Output(store.uri("bucket/five")).write("network.pkl", tiny.reference_file())
    out = tmp_path / "converted.safetensors"
    main(ConvertConfig(store.uri("bucket/five/network.pkl"), out))
    assert load_network(out).record["converted_from"]["file"] == "network.pkl"
    printed = "".join(capsys.readouterr())
    assert "fetching s3://***@bucket/five/network.pkl" in printed
    assert not any(part in printed for part in store.admin)


@pytest.mark.slow
def test_asking_again_is_quick(store):
    Output(store.uri("bucket/six")).write("network.pkl", b"x")
    local_copy(store.uri("bucket/six/network.pkl"), "--network")
    start = time.monotonic()
    local_copy(store.uri("bucket/six/network.pkl"), "--network")
    assert time.monotonic() - start < 2
