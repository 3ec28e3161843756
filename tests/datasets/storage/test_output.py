"""Outputs: all or nothing, on disks and through pyarrow filesystems."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets.storage.addresses import shown
from datasets.storage.local_copy import local_copy
from datasets.storage.output import Output, _host
from passersby.errors import InputError


@pytest.mark.parametrize("scheme", ["path", "file", "mock"])
def test_files_are_written_read_and_listed(tmp_path, scheme):
    folder = str(tmp_path / "a run")
    address = {"path": folder, "file": f"file://{tmp_path}/run", "mock": "mock:///run"}[scheme]
    output = Output(address)
    assert output.read("x/one") is None
    assert not output.exists("x/one")
    assert output.list("x") == []
    output.write("x/y/one", b"1")
    output.write("x/y/one", b"22")
    output.write("x/two", b"2")
    output.write("empty", b"")
    assert output.read("x/y/one") == b"22"
    assert output.exists("x/y/one")
    assert sorted(output.list("x")) == ["x/two", "x/y/one"]
    with output.open("x/two") as file:
        assert file.read() == b"2"
    assert output.local == (scheme != "mock")
    assert output.root_address == {"path": folder, "file": f"{tmp_path}/run", "mock": "mock:///run"}[scheme]
    output.remove("x/two")
    output.remove("x/two")
    output.remove("nowhere/two")
    assert output.list("x") == ["x/y/one"]


@pytest.mark.parametrize("scheme", ["path", "mock"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, scheme):
    output = Output(str(tmp_path) if scheme == "path" else "mock:///run")
    output.write("folder/name", b"old")

    def interrupted():
        with output.replacing("folder/name") as path:
            Path(path).write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert output.read("folder/name") == b"old"
    assert output.list("folder") == ["folder/name"]


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "plain").write_text("")
    output = Output(str(tmp_path / "plain" / "run"))
    assert output.read("plan.json") is None
    with pytest.raises(InputError, match=r"cannot write .*/plain/run/plan\.json: Not a directory"):
        output.write("plan.json", b"x")


def test_a_full_disk_is_named_and_leaves_no_rest(tmp_path):
    # The limit on file sizes stands in for the disk: both fail in the middle of a write.
    code = (
        "import resource, signal, sys\n"
        "from datasets.storage.output import Output\n"
        "from passersby.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    Output(sys.argv[1]).write('shards/big', bytes(5000))\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.startswith(f"cannot write {tmp_path}/shards/big: File too large")
    assert [path.name for path in tmp_path.rglob("*")] == ["shards"]
    Output(str(tmp_path)).write("shards/big", bytes(5000))


def test_a_file_that_cannot_be_removed_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("")
    Output(str(tmp_path)).remove("plain/below")
    with pytest.raises(InputError, match=f"cannot remove {tmp_path}/folder: Is a directory"):
        Output(str(tmp_path)).remove("folder")


@pytest.mark.parametrize(
    ("address", "root", "file"),
    [
        ("/data/run", "/data/run", "/data/run/x"),
        ("file:///data/run/", "file:///data/run", "file:///data/run/x"),
        ("s3://bucket/run", "s3://bucket/run", "s3://bucket/run/x"),
        ("s3://bucket", "s3://bucket", "s3://bucket/x"),
        ("s3://KEY:hidden@bucket/run/?region=r&x=hidden", "s3://***@bucket/run?region=r", "s3://bucket/run/x"),
        ("s3://KEY:hid/den@bucket/run", "s3://***@bucket/run", "s3://bucket/run/x"),
        ("s3://bucket/a@b/run?endpoint_override=http://h:1", "s3://bucket/a@b/run?endpoint_override=http://h:1",
         "s3://bucket/a@b/run/x"),
        ("abfs://container@account/run", "abfs://container@account/run", "abfs://container@account/run/x"),
        ("abfs://account:hidden@container/run", "abfs://***@container/run", "abfs://container/run/x"),
        ("gs://anonymous@bucket/run?scheme=http", "gs://anonymous@bucket/run?scheme=http",
         "gs://anonymous@bucket/run/x"),
    ],
)  # fmt: skip
def test_addresses_are_shown_without_credentials(address, root, file):
    assert (shown(address), shown(address, "x")) == (root, file)


@pytest.mark.parametrize(
    "address",
    [
        "s3://KEYID:hid/den@bucket/run",
        "s3://KEYID:hid#den@bucket/run",
        "s3://KEYID:hid@den@bucket/run",
        "s3://KEYID:hidden@bucket/run?region=r&nosuch=1",
        "s3://:hidden@bucket/run",
        "s3://hidden@bucket/run?endpoint_override=h:1",
        "s3://KEYID:hidden@/run",
        "S3:/KEYID:hidden@bucket/../run",
        "s3a://hidden@bucket/run#1",
        "s3:KEYID:hidden@bucket/run",
        "gs://KEYID:hidden@bucket/run?nosuch=1",
        "gs://KEYID:hid den@bucket/run",
    ],
)
def test_refused_addresses_show_no_credentials(address):
    with pytest.raises(InputError, match="--out ") as caught:
        Output(address)
    assert not any(part in str(caught.value) for part in ("hid", "den@", "KEYID"))
    assert "\n" not in str(caught.value)


def test_leftovers_of_dead_writers_go_and_living_ones_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = tmp_path / "shards" / "000"
    folder.mkdir(parents=True)
    dead = folder / f".unit-000001.parquet.{_host()}.{ended.pid}.tmp"
    living = folder / f".unit-000002.parquet.{_host()}.{os.getpid()}.tmp"
    recent = folder / ".unit-000003.parquet.elsewhere.1.tmp"
    old = folder / ".unit-000004.parquet.elsewhere.1.tmp"
    foreign = folder / ".somebody.tmp"
    for path in (dead, living, recent, old, foreign):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert Output(str(tmp_path)).remove_leftovers() == 2
    assert {path.name for path in folder.iterdir()} == {living.name, recent.name, foreign.name}


def test_leftovers_are_no_files_of_the_run(tmp_path):
    output = Output(str(tmp_path))
    with output.replacing("shards/000/unit-000000.parquet") as path:
        Path(path).write_bytes(b"x")
        assert [name for name in output.list("shards") if not name.endswith(".tmp")] == []
    assert output.list("shards") == ["shards/000/unit-000000.parquet"]


def test_a_relative_path_is_refused_in_a_submitted_job(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Output("run").root_address == str(tmp_path / "run")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(InputError, match="--out run is relative"):
        Output("run")
    assert Output(str(tmp_path)).root_address == str(tmp_path)


@pytest.mark.parametrize(
    "address",
    ["", "  ", "nosuch://bucket/run", "s3://", "s3:///run", "s3://b/run#1", "s3://b/r?x=1", "s3:b/run", "s3://b/../run"]
    + ["file://host/run", "file:///data/run#1", "gs://bucket/run#1"],
)
def test_bad_addresses_are_refused(address):
    with pytest.raises(InputError, match="--out") as caught:
        Output(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spelling", ["file://{}//run/", "file:{}/./run", "FILE://localhost{}/run", " file://{}/run\n"])
def test_all_spellings_of_a_file_address_are_one_folder(tmp_path, spelling):
    Output(str(tmp_path / "run")).write("x", b"content")
    output = Output(spelling.format(tmp_path))
    assert (output.read("x"), output.root_address) == (b"content", str(tmp_path / "run"))
    assert local_copy(f"{spelling.format(tmp_path).strip()}/x", "--network") == tmp_path / "run" / "x"


def test_a_folder_whose_name_is_not_utf8_is_refused_in_one_line(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(InputError, match="--out .*: a part of the name is not UTF-8: rename it"):
        Output(name)


@pytest.mark.parametrize("name", ["José", "夜の街", "a b", "🚶"])
def test_a_folder_with_any_letters_is_written_and_read(tmp_path, name):
    output = Output(str(tmp_path / name))
    output.write("shards/x", b"content")
    assert Output(output.secret_address).list("shards") == ["shards/x"]
    assert output.address("x") == str(tmp_path / name / "x")
