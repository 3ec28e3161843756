"""The package as others get it: the wheel in an empty folder, the program `passersby`, and where Ray Train stands."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobs.__main__ import job_summaries

ROOT = Path(__file__).parents[1]
FOLDERS = ("actors", "datasets", "jobs", "passersby", "pipeline", "reporting", "training", "tune")

# Run beside the unpacked wheel, with the installed stack but without the checkout on the path.
EVERYTHING = """
import importlib, pathlib, sys
wheel = pathlib.Path(sys.argv[1])
names = sorted(
    ".".join(path.relative_to(wheel).with_suffix("").parts).removesuffix(".__init__")
    for path in wheel.rglob("*.py") if path.name != "__main__.py"
)
for name in names:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(wheel), f"{name} comes from {module.__file__}"
from datasets.runs.card import pose_layers
from passersby.stylegan3 import load_network
from passersby.weights import DEMO_NETWORK, DEMO_STYLEGAN3
assert DEMO_NETWORK.is_relative_to(wheel)
assert load_network(DEMO_NETWORK).has_who
loaded = load_network(DEMO_STYLEGAN3)
assert "says toy_crowd.card.json" in pose_layers(DEMO_STYLEGAN3, loaded.sha256).reason
network = loaded.generator.config
print(len(names), "modules;", network.height, "x", network.width)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout's files, built without a registry and unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to it is not known")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if name.split("/")[0] in FOLDERS or "/" not in name:
            source, target = ROOT / name, folder / "source" / name
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    build = "from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", f"import sys; {build}", str(folder)],
        cwd=folder / "source", check=True, capture_output=True,
    )  # fmt: skip
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder / "unpacked")
    return folder / "unpacked"


def run(wheel: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Editable installs find their modules behind everything that stands on the path.
    environment |= {"PYTHONPATH": str(wheel), "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=wheel.parent, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_every_module_of_the_wheel_imports_without_the_checkout_and_the_demo_network_loads(wheel):
    done = run(wheel, "-c", EVERYTHING, str(wheel))
    assert done.returncode == 0, done.stderr
    modules = sum(1 for folder in FOLDERS for _ in (ROOT / folder).rglob("*.py")) - 2  # __main__.py
    assert done.stdout.split() == [str(modules), "modules;", "64", "x", "32"]


@pytest.mark.slow
def test_the_wheel_has_the_data_of_every_folder(wheel):
    def data(root: Path) -> set[str]:
        paths = (path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file())
        return {str(path.relative_to(root)) for path in paths if path.suffix not in (".py", ".pyc")}

    demo = {f"passersby/demo/{name}" for name in ("toy_crowd.safetensors", "toy_crowd.card.json")}
    named = {"reporting/report.html.j2", "passersby/demo/toy_crowd_pairs.safetensors", *demo}
    assert data(wheel) == data(ROOT) >= named


@pytest.mark.slow
def test_the_program_of_the_wheel_lists_every_job_in_one_line_each(wheel):
    done = run(wheel, "-m", "jobs", "--help")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name, summary in job_summaries().items():
        assert sum(line.split()[:1] == [name] and line.endswith(summary) for line in lines) == 1
    assert (wheel / "passersby-0.1.0.dist-info" / "entry_points.txt").read_text().split("\n")[1] == (
        "passersby = passersby.__main__:main"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generat",), "error: passersby has no job generat: did you mean generate?"),
        (("quux", "--out", "x"), "error: passersby has no job quux: see passersby --help"),
    ],
)
def test_a_job_that_is_not_there_is_one_line(arguments, message):
    done = subprocess.run([sys.executable, "-m", "jobs", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (2, message)


@pytest.mark.slow
def test_the_program_takes_the_options_of_the_jobs_file():
    by_name, by_file = (
        subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
        for words in (("-m", "jobs", "refilter"), ("jobs/refilter.py",))
    )
    assert by_name.returncode == by_file.returncode == 0
    assert by_name.stdout.startswith("usage: passersby refilter [-h]")
    assert by_name.stdout.partition("[-h]")[2].split() == by_file.stdout.partition("[-h]")[2].split()


@pytest.mark.slow
def test_ray_train_stands_in_pipeline_and_tune_alone():
    """Import contracts know no parts of other packages, so this one is kept here."""
    found = []
    for folder in set(FOLDERS) - {"pipeline", "tune"}:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.startswith("ray.train")]
    assert not found


def calls_and_checks(kind: type) -> list[tuple[str, ast.AST]]:
    """(place, node) of all nodes of a kind in the program."""
    nodes = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        nodes += [(f"{path.relative_to(ROOT)}:{n.lineno}", n) for n in ast.walk(tree) if isinstance(n, kind)]
    return nodes


def test_no_check_lives_in_an_assert():
    """python -O leaves asserts out: they only tell the type checker what is no None, or of which class it is."""
    for place, node in calls_and_checks(ast.Assert):
        text = ast.unparse(node.test)
        assert text.endswith(" is not None") or text.startswith("isinstance("), place


def test_files_of_text_are_read_and_written_in_a_named_encoding():
    """Without a name the encoding would be that of the machine's locale."""
    wanted = {"read_text": 1, "write_text": 2}  # number of arguments with an encoding
    for place, node in calls_and_checks(ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        named = len(node.args) >= wanted.get(name, 0) or any(word.arg == "encoding" for word in node.keywords)
        assert named, place
        assert not any(word.arg == "text" and name in ("run", "Popen") for word in node.keywords), place
