"""Starts programs as a user whose number has no name, as containers often do, in a user namespace."""

import os
import subprocess

import pytest

NOBODY = 54321
_WORDS = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]


def as_nobody(command: list[str], **options) -> subprocess.CompletedProcess[str]:
    """Run a command as this user. Skips the test where the system has no user namespaces, or the user has a name."""
    probe = subprocess.run([*_WORDS, "id", "-u"], capture_output=True, text=True) if _has_unshare() else None
    if probe is None or probe.returncode or int(probe.stdout) != NOBODY:
        pytest.skip("no user namespaces here")
    return subprocess.run([*_WORDS, *command], capture_output=True, text=True, **options)


def _has_unshare() -> bool:
    return any(os.access(os.path.join(folder, "unshare"), os.X_OK) for folder in os.environ["PATH"].split(":"))
