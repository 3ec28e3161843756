"""Outputs on an object store: a real S3 server with authentication, and a gate before it that dies."""

import itertools
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datasets.runs.plan import Plan
from datasets.runs.run import Run, shard_name
from datasets.storage import addresses as stores
from datasets.storage.output import Output
from passersby.errors import InputError
from tests.helpers import object_store as helper

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with helper.serve(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def bucket(store) -> str:
    name = f"bucket-{next(NUMBERS)}"
    store.make_bucket(name)
    return name


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch):
    helper.forget_environment(monkeypatch)


@pytest.fixture
def impatient(monkeypatch):
    """Two tries, so that tests of dead servers take a second."""
    monkeypatch.setattr(stores, "ATTEMPTS", 2)


def one_line(error, *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 420
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("form", ["whole", "two options", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_files_are_written_read_listed_and_removed(store, bucket, monkeypatch, form):
    address = store.uri(f"{bucket}/a%20run")
    if form == "two options":
        address = address.replace("http://", "") + "&scheme=http"
    elif form != "whole":
        address, _, endpoint = address.partition("?endpoint_override=")
        monkeypatch.setenv(form, endpoint)
    output = Output(address)
    assert output.read("x/one") is None
    assert output.list("x") == []
    output.write("x/y/one", b"1")
    output.write("x/y/one", b"22")
    with output.replacing("x/two") as path:
        Path(path).write_bytes(b"2")
    output.write("empty", b"")
    again = Output(output.secret_address)  # as workers open it
    assert (again.read("x/y/one"), again.read("empty")) == (b"22", b"")
    assert again.exists("x/two")
    assert not again.exists("x/nothing")
    assert not again.exists("x")
    assert sorted(again.list("x")) == ["x/two", "x/y/one"]
    assert set(store.objects(bucket)) == {"a run/x/y/one", "a run/x/two", "a run/empty"}
    with again.open("x/two") as file:
        assert file.read() == b"2"
    again.remove("x/two")
    again.remove("x/two")
    assert again.list("x") == ["x/y/one"]
    assert again.remove_leftovers() == 0


@pytest.mark.parametrize("spelling", ["{}//run", "{}/run//", "{}/./run/", "{}/%2Frun", "{}/.//run"])
def test_all_spellings_of_an_address_are_one_folder(store, bucket, spelling):
    output = Output(store.uri(spelling.format(bucket)))
    output.write("shards/x", b"content")
    assert set(store.objects(bucket)) == {"run/shards/x"}
    assert Output(store.uri(f"{bucket}/run")).list("shards") == ["shards/x"]
    assert output.address("x") == f"s3://{bucket}/run/x" or "%2F" in spelling


@pytest.mark.parametrize("change", [("s3://", "S3://"), ("s3://", "s3a://"), ("s3://", "s3:/"), ("http://", "http:/")])
def test_a_scheme_in_any_form_is_that_store(store, bucket, change):
    address = store.uri(f"{bucket}/run")
    Output(address).write("x", b"content")
    assert Output(address.replace(*change, 1)).read("x") == b"content"
    assert Output(f" {address}\n").read("x") == b"content"


@pytest.mark.parametrize("name", ["José", "夜の街", "a b"])
def test_a_folder_with_any_letters_is_written_and_read(store, bucket, name):
    output = Output(store.uri(f"{bucket}/{name}"))
    output.write("shards/x", b"content")
    assert Output(output.secret_address).list("shards") == ["shards/x"]
    assert set(store.objects(bucket)) == {f"{name}/shards/x"}


def test_credentials_come_from_the_environment(store, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", store.admin[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store.admin[1])
    output = Output(store.uri(f"{bucket}/run", None))
    output.write("x", b"1")
    assert output.read("x") == b"1"


def test_a_bucket_that_does_not_exist_is_named_before_anything_is_made(store):
    output = Output(store.uri("nobucket/run"))
    with pytest.raises(InputError, match="there is no bucket nobucket: create it"):
        Run(output, Plan(None)).finished()
    with pytest.raises(InputError) as error:
        output.write("plan.json", b"x")
    one_line(error, "cannot write s3://nobucket/run/plan.json: there is no such bucket: create it")


def test_missing_and_wrong_credentials_are_one_line_and_no_secret(store, bucket):
    key, secret = store.admin
    Output(store.uri(f"{bucket}/run")).write("x", b"1")
    cases = {
        None: "no credentials were found",
        (key, "hidden/secret"): "the secret does not belong to the access key",
        ("AKIANOBODY", secret): "the store does not know this access key",
        store.reader: "has no permission here",
    }
    for user, reason in cases.items():
        output = Output(store.uri(f"{bucket}/run", user))
        with pytest.raises(InputError) as error:
            output.write("x", b"2")
        one_line(error, f"cannot write s3://{bucket}/run/x: ", reason, "AWS_ACCESS_KEY_ID", "a role")
        shown = str(error.value) + output.root_address + output.address("x")
        assert not any(part in shown for part in (key, secret, "hidden", "AKIANOBODY"))
        for call in (output.read, output.list, output.exists, output.open) if user != store.reader else ():
            with pytest.raises(InputError) as error:
                call("x")
            one_line(error, f"s3://{bucket}/run/x: ", "AWS_ACCESS_KEY_ID")
    reader = Output(store.uri(f"{bucket}/run", store.reader))
    assert (reader.read("x"), reader.list(""), reader.list("nothing")) == (b"1", ["x"], [])


def test_missing_credentials_take_seconds_where_no_metadata_service_answers(store, bucket, monkeypatch):
    # Off the cloud the SDK would wait 14 s for Amazon's metadata service, and 2 s more at each request.
    silent = helper.Gate(store.port, silent=True)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.port}")
    stores._skip_absent_metadata.cache_clear()
    start = time.monotonic()
    output = Output(store.uri(f"{bucket}/run", None))
    for _ in range(3):
        with pytest.raises(InputError, match="no credentials were found"):
            output.read("x")
    assert time.monotonic() - start < 5
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    silent.shut()


def test_a_metadata_service_that_answers_is_left_in_use(store, bucket, monkeypatch):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{store.port}")
    stores._skip_absent_metadata.cache_clear()
    Output(store.uri(f"{bucket}/run", None))
    assert "AWS_EC2_METADATA_DISABLED" not in os.environ
    stores._skip_absent_metadata.cache_clear()


@pytest.mark.parametrize("host", ["127.0.0.1:9", "nosuch.invalid"])
def test_no_server_is_one_line_in_seconds(impatient, host):
    output = Output(f"s3://KEY:hidden@bucket/run?endpoint_override=http://{host}")
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        output.read("plan.json")
    assert time.monotonic() - start < 10
    one_line(error, "cannot read s3://bucket/run/plan.json: no answer from the store (", host, "endpoint_override=")


def test_no_google_server_is_one_line_in_seconds(monkeypatch):
    monkeypatch.setattr(stores, "GCS_RETRY_SECONDS", 1)
    output = Output("gs://anonymous@bucket/run?endpoint_override=127.0.0.1:9&scheme=http")
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        output.read("plan.json")
    assert time.monotonic() - start < 20
    one_line(error, "no answer from the store (UNAVAILABLE: Could not connect to server)")


def test_a_server_that_falls_silent_is_one_line_in_bounded_time(store, bucket, monkeypatch):
    monkeypatch.setattr(stores, "ATTEMPTS", 1)
    monkeypatch.setattr(stores, "REQUEST_SECONDS", 1)
    gate = helper.Gate(store.port, silent=True)
    output = Output(store.uri(f"{bucket}/run", port=gate.port))
    start = time.monotonic()
    with pytest.raises(InputError, match=r"no answer from the store \(silent for 1 s\)"):
        output.read("x")
    assert time.monotonic() - start < 6
    gate.shut()


@pytest.mark.parametrize("megabytes", [1, 12])
def test_a_server_that_dies_in_the_middle_of_a_write_shows_nothing(store, bucket, impatient, megabytes):
    content = os.urandom(megabytes << 20)
    gate = helper.Gate(store.port, limit=len(content) * 2 // 3)
    output = Output(store.uri(f"{bucket}/run", port=gate.port))
    with pytest.raises(InputError) as error, output.replacing("shard") as path:
        Path(path).write_bytes(content)
    one_line(error, f"cannot write s3://{bucket}/run/shard: no answer from the store", "the same command goes on")
    gate.open()
    assert store.objects(bucket) == {}
    assert (output.exists("shard"), output.list("")) == (False, [])
    # A large file comes in parts: the store keeps those until the bucket's lifecycle rule removes them.
    begun = store.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert len(begun) == (megabytes > 5)
    with output.replacing("shard") as path:
        Path(path).write_bytes(content)
    assert output.read("shard") == content


def test_a_server_that_dies_keeps_the_old_file_and_reading_goes_on_afterwards(store, bucket, impatient):
    gate = helper.Gate(store.port)
    output = Output(store.uri(f"{bucket}/run", port=gate.port))
    output.write("plan.json", b"old")
    gate.shut()
    for call in (output.read, output.exists, output.list, output.remove, lambda name: output.write(name, b"new")):
        with pytest.raises(InputError, match="no answer from the store"):
            call("plan.json")
    gate.open()
    assert output.read("plan.json") == b"old"
    output.write("plan.json", b"new")
    assert output.read("plan.json") == b"new"
    gate.shut()


def test_an_interrupted_upload_is_whole_or_absent(store, bucket):
    output, content = Output(store.uri(f"{bucket}/run")), os.urandom(12 << 20)

    def upload(name: str, delay: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, delay)
        output.write(name, content)
        signal.pause()  # where the upload was quicker

    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for delay in (0.001, 0.02, 0.1):
            with pytest.raises(KeyboardInterrupt):
                upload(f"shard-{delay}", delay)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert set(store.objects(bucket).values()) <= {len(content)}


def test_a_block_that_fails_uploads_nothing(store, bucket):
    output = Output(store.uri(f"{bucket}/run"))

    def interrupted():
        with output.replacing("shard") as path:
            Path(path).write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert store.objects(bucket) == {}


@pytest.mark.slow
def test_requests_are_few(store, bucket):
    # A listing is paged by 1000 names, whatever the number of folders.
    output = Output(store.uri(f"{bucket}/run"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda unit: output.write(shard_name(unit * 3), b"x"), range(1010)))
    before = len(store.requests())
    assert len(Run(output, Plan(None)).finished()) == 1010
    listing = store.requests()[before:]
    assert len(listing) == 2
    assert all(request.startswith(f"GET /{bucket}?") for request in listing)
    for call, expected in (
        (lambda: output.exists(shard_name(3)), "HEAD"),
        (lambda: output.exists("nothing"), "HEAD"),
        (lambda: output.write("small", bytes(100_000)), "PUT"),
    ):
        before = len(store.requests())
        call()
        assert [request.split()[0] for request in store.requests()[before:]] == [expected]
