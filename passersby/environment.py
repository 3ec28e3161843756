"""What a program finds around it: its own packages, a home folder that can be written, one for temporary files.

Containers often run as a user without a name and without a home folder, and batch systems start jobs with a home folder
that can only be read. Libraries then fail while they are imported: Ray Train and matplotlib look for the home folder,
PyTorch for the user's name.
"""

import os
import pwd
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from passersby.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("actors", "datasets", "jobs", "passersby", "pipeline", "reporting", "training", "tune")


def own_packages_first(root: str = str(ROOT)) -> Callable[[], None]:
    """A function after whose call a process imports this project's packages from `root`, if that folder exists.

    Other projects have packages of the same names (`datasets`, `training`), and PYTHONPATH comes before what is
    installed. In Ray's workers the driver's current folder even comes before PYTHONPATH. The function can be pickled by
    value: a worker calls it before it imports anything of this project.
    """
    names = PACKAGES

    def take_own_packages() -> None:
        import os
        import sys
        from importlib.machinery import PathFinder

        class OwnPackages:
            @staticmethod
            def find_spec(name, path=None, target=None):
                return PathFinder.find_spec(name, [root]) if name in names else None

        if os.path.isdir(os.path.join(root, "pipeline")):
            sys.meta_path.insert(0, OwnPackages)

    return take_own_packages


def cache_folder() -> Path:
    """The folder of downloaded weights and of other files that can be made again; it need not exist.

    PASSERSBY_CACHE names it. Otherwise it is ~/.cache/passersby if that exists, or `passersby` in XDG_CACHE_HOME. Where
    there is neither this variable nor a home folder, it lies in `private_folder`.
    """
    if named := os.environ.get("PASSERSBY_CACHE"):
        return Path(named).absolute()
    home = home_folder()
    usual = None if home is None else home / ".cache" / "passersby"
    if usual is not None and usual.is_dir():
        return usual
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the standard wants a relative one ignored
        return Path(base) / "passersby"
    return usual or private_folder() / "cache" / "passersby"


def home_folder() -> Path | None:
    """The home folder. None if the user has none, or if it does not exist."""
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set, and the system has no name for the user's number
        return None
    return home if home.is_dir() else None


def private_folder() -> Path:
    """A folder below that of temporary files which only this user can read and write; it stays after the program.

    Raises InputError where no folder takes temporary files.
    """
    path = Path(temporary_folder()) / f"passersby-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if path.is_dir() and not path.is_symlink() and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return path
    except OSError:
        pass
    # Somebody else has made the folder, and could change what we read from it.
    return Path(tempfile.mkdtemp(prefix=f"passersby-{os.getuid()}-"))


def temporary_folder() -> str:
    """The folder of temporary files: that of TMPDIR, or where this cannot be written another of the system.

    Raises InputError where none can be written.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        named = os.environ.get("TMPDIR", "is not set")
        raise InputError(
            f"TMPDIR {named}: no folder takes temporary files, or the disk is full: set it to one that can be written"
        ) from error


def choose_places() -> None:
    """Give libraries a place to write and a name of the user where the environment has none, and print what was chosen.

    It changes environment variables, which the processes of a Ray that this process starts inherit. A home folder that
    exists stays the home folder, because it may hold credentials. What the user has set stays as it is.
    """
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            os.environ["USER"] = f"user-{os.getuid()}"
    home = home_folder()
    if home is not None and os.access(home, os.W_OK | os.X_OK):
        return
    try:
        folder = private_folder()
    except InputError:  # the job says it, where it needs such a folder
        return
    named = os.environ.get("HOME")
    print(
        f"note: HOME {named or 'is not set'}{' cannot be written' if home else ' is no folder' if named else ''}: "
        f"what libraries keep for the next time is kept in {folder}",
        file=sys.stderr,
    )
    if home is None:
        os.environ["HOME"] = str(folder)
    os.environ.setdefault("XDG_CACHE_HOME", str(folder / "cache"))
    os.environ.setdefault("XDG_CONFIG_HOME", str(folder / "config"))
    os.environ.setdefault("TRITON_HOME", str(folder))
    if home is not None and not (home / ".ray" / "auth_token").exists() and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)  # a private Ray would write one into the home folder
