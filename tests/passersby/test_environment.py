"""What a program finds around it: no home folder, no name of the user, no place to write, other projects' packages."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from passersby.environment import (
    cache_folder,
    choose_places,
    home_folder,
    own_packages_first,
    private_folder,
    temporary_folder,
)
from passersby.errors import InputError
from tests.helpers.nobody import NOBODY, as_nobody

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def usual(monkeypatch, tmp_path):
    """The usual environment: a home folder, and no variable that names another; a fresh folder of temporary files."""
    for name in ("PASSERSBY_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME", "RAY_AUTH_TOKEN", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)


def test_the_cache_is_where_the_variables_say(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "home" / ".cache" / "passersby"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard says: ignore it
    assert cache_folder() == tmp_path / "home" / ".cache" / "passersby"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "passersby"
    (tmp_path / "home" / ".cache" / "passersby").mkdir(parents=True)  # weights that an older version fetched
    assert cache_folder() == tmp_path / "home" / ".cache" / "passersby"
    monkeypatch.setenv("PASSERSBY_CACHE", "own")
    assert cache_folder() == Path("own").absolute()


@pytest.mark.parametrize("home", [None, "/nonexistent", "plain file"])
def test_without_a_home_folder_everything_is_kept_in_a_private_folder(tmp_path, monkeypatch, capsys, home):
    (tmp_path / "plain file").write_text("")
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setenv("HOME", str(tmp_path / home) if home == "plain file" else home)
    private = tmp_path / "temporary" / f"passersby-{os.getuid()}"
    assert home_folder() is None
    assert cache_folder() == private / "cache" / "passersby"
    choose_places()
    assert os.environ["HOME"] == str(private)
    assert (os.environ["XDG_CACHE_HOME"], os.environ["XDG_CONFIG_HOME"]) == (f"{private}/cache", f"{private}/config")
    assert private.stat().st_mode & 0o777 == 0o700
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: HOME ")
    assert str(private) in line


def test_a_home_folder_that_can_only_be_read_stays_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "home")  # root can write any folder
    monkeypatch.setenv("XDG_CONFIG_HOME", "/own")
    choose_places()
    assert os.environ["HOME"] == str(tmp_path / "home")  # it may hold ~/.aws
    assert os.environ["XDG_CONFIG_HOME"] == "/own"
    assert os.environ["XDG_CACHE_HOME"].startswith(str(tmp_path / "temporary"))
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 32
    assert "cannot be written" in capsys.readouterr().err


def test_a_usual_home_folder_changes_nothing_and_is_no_line(capsys):
    before = dict(os.environ)
    choose_places()
    assert (dict(os.environ), capsys.readouterr().err) == (before, "")


def test_a_private_folder_that_somebody_else_has_made_is_not_used(tmp_path):
    planned = tmp_path / "temporary" / f"passersby-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    planned.symlink_to(tmp_path / "theirs")
    assert private_folder() != planned
    planned.unlink()
    planned.mkdir()
    planned.chmod(0o777)
    other = private_folder()
    assert other != planned
    assert other.stat().st_mode & 0o777 == 0o700
    planned.chmod(0o700)
    assert private_folder() == planned


def test_no_place_for_temporary_files_is_one_line_that_names_the_variable(monkeypatch):
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setenv("TMPDIR", "/full")
    with pytest.raises(InputError, match=r"^TMPDIR /full: .*set it to one that can be written$"):
        temporary_folder()
    monkeypatch.setenv("HOME", "/nonexistent")
    choose_places()  # the job says it later


def program_of_nobody(program: str, temporary: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as a user without a name, with nothing but a folder for temporary files."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    return as_nobody([sys.executable, "-c", program], env=environment, cwd="/")


def test_a_user_without_a_name_gets_one_and_a_home(tmp_path):
    done = program_of_nobody(
        "import getpass, jobs.common; from pathlib import Path; from passersby.environment import cache_folder; "
        "print(getpass.getuser(), Path.home(), cache_folder())",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    home = f"{tmp_path}/passersby-{NOBODY}"
    assert done.stdout.split() == [f"user-{NOBODY}", home, f"{home}/cache/passersby"]
    assert done.stderr == f"note: HOME is not set: what libraries keep for the next time is kept in {home}\n"


LIBRARIES = """
import jobs.common
import ray.train, ray.tune, matplotlib.font_manager, torch._inductor.runtime.cache_dir_utils as torch_cache
torch_cache.cache_dir()
print("imported")
"""


@pytest.mark.slow
def test_libraries_that_look_for_a_home_and_a_name_can_be_imported_without(tmp_path):
    done = program_of_nobody(LIBRARIES, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported"]


# ---- Other projects' packages of the same names.


def foreign(folder: Path, names: tuple[str, ...], as_files: bool = False) -> Path:
    """A project with packages (or files) of these names, each of which says so when it is imported."""
    for name in names:
        path = folder / f"{name}.py" if as_files else folder / name / "__init__.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise SystemExit('the foreign {name} was imported')\n")
    return folder


NAMES = ("actors", "datasets", "jobs", "passersby", "pipeline", "reporting", "training", "tune", "models", "utils")


@pytest.mark.parametrize("as_files", [False, True])
def test_a_job_s_file_takes_its_own_packages(tmp_path, as_files):
    path = foreign(tmp_path / "other", NAMES, as_files)
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "refilter.py"), "--help"],
        cwd=path, env=os.environ | {"PYTHONPATH": str(path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "refilter" in done.stdout


def test_every_job_s_file_puts_its_own_folder_first():
    """The line stands before anything of this project is imported; the test above starts one of them."""
    files = [path for path in (ROOT / "jobs").glob("*.py") if path.stem not in ("__init__", "__main__", "common")]
    assert len(files) > 12
    for path in files:
        lines = path.read_text().splitlines()
        own = next(i for i, line in enumerate(lines) if line.startswith(tuple(f"from {n}" for n in NAMES)))
        (first,) = (i for i, line in enumerate(lines) if line.startswith("sys.path.insert(0, str(Path(__file__)"))
        assert first < own, path


@pytest.mark.parametrize("job", ["--help", "refilter"])
def test_the_program_takes_its_own_packages(tmp_path, job):
    """As its script in bin/ does: `passersby` is found, and then nothing else of another project."""
    path = foreign(tmp_path / "other", tuple(name for name in NAMES if name != "passersby"))
    words = [job] if job == "--help" else [job, "--help"]
    done = subprocess.run(
        [sys.executable, "-c", "from passersby.__main__ import main; main()", *words],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{path}:{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("usage: passersby")


WORKER = """
import pickle, sys
pickle.loads(bytes.fromhex(sys.argv[1]))()  # as Ray's worker does before its first task
sys.path.insert(0, sys.argv[2])  # and then Ray puts the driver's current folder first
import datasets.storage, training, tune
print(datasets.__file__, training.__file__, tune.__file__)
"""


def test_a_worker_takes_its_own_packages_whatever_ray_puts_first(tmp_path):
    from ray import cloudpickle

    path = foreign(tmp_path / "other", NAMES)
    pickled = cloudpickle.dumps(own_packages_first()).hex()
    done = subprocess.run(
        [sys.executable, "-c", WORKER, pickled, str(path)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(Path(file).is_relative_to(ROOT) for file in done.stdout.split())


def test_on_a_node_without_this_folder_a_worker_takes_what_is_installed(tmp_path):
    before = list(sys.meta_path)
    own_packages_first(str(tmp_path / "not here"))()
    assert sys.meta_path == before
