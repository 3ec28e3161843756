"""Whole writes and hashes."""

import hashlib

import pytest

from passersby.errors import InputError
from passersby.files import file_sha256, sync, write_atomically, write_synced


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
