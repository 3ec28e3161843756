"""Whole writes and hashes."""

import hashlib
import re

import pytest

from passersby.errors import InputError
from passersby.files import file_sha256, normal_address, normal_path, sync, write_atomically, write_synced


def test_a_file_is_replaced_as_a_whole_and_nothing_else_stays(tmp_path):
    path = tmp_path / "a"
    for content in (b"old", b"new"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(InputError, match=f"cannot write {tmp_path / 'none' / 'a'}: No such file"):
        write_atomically(tmp_path / "none" / "a", b"")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "a").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(InputError, match="cannot write"):
        write_atomically(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_written_files_and_folders_can_be_synced(tmp_path):
    write_synced(tmp_path / "a", memoryview(b"abc"))
    assert (tmp_path / "a").read_bytes() == b"abc"
    sync(tmp_path / "a")
    sync(tmp_path)


def test_a_hash_names_the_option_where_one_gave_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert file_sha256(tmp_path / "a") == file_sha256(str(tmp_path / "a"), "--network") == expected
    for bad in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=f"--network {bad}: .*: check the path"):
            file_sha256(bad, "--network")
        with pytest.raises(OSError, match=str(bad)):
            file_sha256(bad)


@pytest.mark.parametrize(
    ("address", "usual"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        ("s3://bucket//run", "s3://bucket/run"),
        ("s3://bucket/run/", "s3://bucket/run"),
        ("s3://bucket/run//", "s3://bucket/run"),
        ("s3://bucket/./run/.", "s3://bucket/run"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3:/bucket/run", "s3://bucket/run"),  # pathlib's
        ("S3://bucket/Run", "s3://bucket/Run"),
        ("s3a://bucket/run", "s3://bucket/run"),
        ("s3n:/bucket/run", "s3://bucket/run"),
        (" s3://bucket/run \n", "s3://bucket/run"),
        ("s3://bucket/a b/c", "s3://bucket/a b/c"),
        ("s3://bucket/..run/a..b", "s3://bucket/..run/a..b"),
        ("s3://KEY:se%2Fcret@bucket//run", "s3://KEY:se%2Fcret@bucket/run"),
        ("s3://bucket//run/?endpoint_override=http://h:1//x", "s3://bucket/run?endpoint_override=http://h:1//x"),
        (
            "s3:/bucket/run?endpoint_override=http:/h:1&region=r",
            "s3://bucket/run?endpoint_override=http://h:1&region=r",
        ),
        ("GS://bucket//run", "gs://bucket/run"),
        ("gcs:/bucket/run", "gcs://bucket/run"),
        ("abfs://container@account//run/", "abfs://container@account/run"),
        ("abfss:///container//run", "abfss:///container/run"),
        ("hdfs:///data//run", "hdfs:///data/run"),
        ("nosuch://bucket//run", "nosuch://bucket/run"),
        ("file:///data//run/", "file:///data/run"),
        ("FILE:///data/Run", "file:///data/Run"),
        ("file:/data/run", "file:///data/run"),
        ("file:////data/run", "file:///data/run"),
        ("file://localhost/data/run", "file:///data/run"),
        # Paths on a disk may be called anything.
        ("/data//run/", "/data//run/"),
        ("runs/x ", "runs/x "),
        ("a:b", "a:b"),
        ("C:/run", "C:/run"),
        ("16:45/run", "16:45/run"),
        ("../run#1", "../run#1"),
        ("/mnt/s3://bucket", "/mnt/s3://bucket"),
    ],
)
def test_two_spellings_of_an_address_are_one(address, usual):
    assert normal_address(address) == usual
    assert normal_address(usual) == usual


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3:///run", "names no bucket: write s3://BUCKET/PATH"),
        ("s3://", "names no bucket"),
        ("s3:/", "names no bucket"),
        ("s3://?region=r", "names no bucket"),
        ("gs:///run", "names no bucket: write gs://BUCKET/PATH"),
        ("s3:bucket/run", "two slashes come after s3:, as in s3://BUCKET/PATH"),
        ("file:run", "as in file:///PATH"),
        ("s3://bucket/a/../b", "has .. in it"),
        ("s3://bucket/..", "has .. in it"),
        ("file:///data/../run", "has .. in it"),
        ("gs://bucket/run#1", "write %23"),
        ("file:///data/run#1", "write %23"),
    ],
)
def test_an_address_that_means_no_place_is_refused_with_the_way_out(address, message):
    with pytest.raises(InputError, match=re.escape(message)):
        normal_address(address)


def test_a_path_behind_a_bucket_has_no_doubled_slashes():
    assert normal_path("bucket//a/./b/") == "bucket/a/b"
    with pytest.raises(InputError, match="has .. in it"):
        normal_path("bucket/a/../b")
