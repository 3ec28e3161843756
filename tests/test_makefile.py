"""`make setup`: quiet, alive, and an error of pip is seen. A script stands in for the environment's Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = """#!/bin/sh
echo "$@" >> calls.txt
echo "$TMPDIR" > tmpdir.txt
{actions}
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile; returns a function that runs `make setup` where pip does these shell commands."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)

    def setup(actions: str, *options: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / ".venv/bin/python"
        script.write_text(PYTHON.format(actions=actions))
        script.chmod(0o755)
        # `make test` hands its own flags to every make below it, which then also says the folders that it enters.
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
        return subprocess.run(
            ["make", "setup", *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )

    setup.folder = tmp_path
    return setup


def test_an_install_is_two_lines_and_done_once(checkout):
    done = checkout("exit 0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "installing the pinned stack into .venv (about 6 GB; once)",
        "installed into .venv",
    ]
    (call,) = (checkout.folder / "calls.txt").read_text().splitlines()
    assert call == "-m pip install -qq --disable-pip-version-check -c constraints.txt -e .[dev]"
    assert (checkout.folder / "tmpdir.txt").read_text().strip() == str(checkout.folder / ".venv/tmp")
    assert sorted(path.name for path in (checkout.folder / ".venv").iterdir()) == [".ready", "bin"]
    again = checkout("exit 1")
    assert again.returncode == 0
    assert len((checkout.folder / "calls.txt").read_text().splitlines()) == 1


@pytest.mark.slow
def test_an_install_that_takes_long_says_that_it_is_alive(checkout):
    done = checkout("head -c 3000000 /dev/zero > .venv/tmp/wheel; sleep 3.5", "ALIVE_SECONDS=1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:-1]
    assert len(lines) >= 2
    assert lines[0].split()[1:] == ["s:", "3", "MB"] or lines[1].split()[1:] == ["s:", "3", "MB"]


def test_an_error_of_pip_is_seen_and_the_next_make_tries_again(checkout):
    done = checkout('echo "ERROR: No matching distribution found for ray" >&2; exit 1')
    assert done.returncode == 2
    assert "ERROR: No matching distribution found for ray" in done.stderr
    assert not (checkout.folder / ".venv/.ready").exists()
    assert checkout("exit 0").returncode == 0
    assert (checkout.folder / ".venv/.ready").exists()


def test_the_line_that_it_is_alive_ends_with_make(checkout):
    """A process that outlived make would keep the pipe open that the output goes to."""
    done = checkout("exit 3", "ALIVE_SECONDS=1")
    assert done.returncode == 2
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(checkout.folder) not in listed
