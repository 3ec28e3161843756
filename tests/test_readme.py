"""README.md, CONTRIBUTING.md, CHANGELOG.md and docs/: every command and every piece of Python in them, and their shape.

A command is run where it can be run here, else parsed.

A command that is in neither table below fails: say how it is run here (RUN), or why it is not (PARSED).
"""

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import tyro

from jobs.__main__ import job_summaries
from passersby.weights import DEMO_NETWORK

ROOT = Path(__file__).parents[1]
TOP_PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
SUBJECTS = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "index.md")
INDEX = ROOT / "docs" / "index.md"
PAGES = [*TOP_PAGES, INDEX, *SUBJECTS]

# Run here, with these options behind what the page says: they win, and make it small.
RUN = {
    r"make( [A-Z]+=\S+)* generate$": "--people 3 --variants 4 --generators 1 --detectors 1",
    r"python jobs/generate\.py .*--out OUT": "--people 3 --variants 4 --unit-images 64 --generators 1 --detectors 1",
    r"python jobs/refilter\.py ": "",
    r"python jobs/verify\.py OUT": "--sample 4",
    r"python jobs/preview\.py ": "--people 1 --variants 2",
    r"python jobs/make_toy_crowd\.py ": "--train-people 2 --test-people 1 --images-per-camera 2 --distractors 3 "
    "--junk 3 --workers 1",
    r"python jobs/convert\.py .*--out OUT$": "--out OUT.safetensors",  # it wants a name that says what it writes
    r"python jobs/convert\.py ((?!--for ).)*$": "",
    r"python jobs/export\.py ((?!s3:).)*$": "",
}
# Not run here, and why. What our own parsers, Ray's and make's know of them is still checked.
PARSED = {
    r"make( [A-Z]+=\S+)* (test|test-rest|test-all|lint|format|clean|setup)( ARGS=\"[^\"]*\")?$": "this very run, or no "
    "business of a test",
    r"make chromium$": "installs a browser",
    r"make( [A-Z]+=\S+)* chain(-variants|-full)?$": "trainings of an hour and more",
    r"make photographs( [A-Z_]+=\S+)*$": "a night on a GPU",
    r".*\b(s3|gs)://": "a bucket",
    r"ray ": "a cluster",
    r"export RAY_\w+=\S+$": "a cluster",
    r"(kubectl|docker) ": "Kubernetes, Docker",
    r"pip install ": "would change this environment",
    r"pre-commit install$": "would change what git does in this checkout",
    r"python jobs/(train_\w+|invert)\.py ": "trains for minutes to hours",
    r"python jobs/generate\.py --detector-file ": "a detector of the user's own",
    r"python jobs/generate\.py --latents ": "latents by an encoder that was trained for an hour",
    r"python jobs/generate\.py .*--identity \S+ .*--out PEOPLE$": "a network that was trained for minutes to hours",
    r"python jobs/study\.py ": "trainings of an hour and more",
    r"python jobs/(sweep|report|calibrate)\.py ": "trainings of hours, or real pictures",
    r"python jobs/(evaluate_reid|find_person|export_reid)\.py ": "a network that was trained for minutes to hours",
    r"python jobs/convert\.py .*--for ": "a square network, as that tool wants it; the demo network is tall",
    r"python jobs/score\.py ": "inception features of thousands of images",
    r"python benchmarks/\w+\.py": "measures for minutes",
    r"passersby ": "the job's file does the same, by another name",
}

# Words of the pages that stand for a place: (folder of the test)/name.
PLACES = {
    "OUT": "out/demo",
    "OUT.safetensors": "converted.safetensors",
    "TREE": "crowd",
    "DIR": "directory",
    "MARKET": "market1501",
    "sheet.png": "sheet.png",
    "/tmp/crowd": "crowd",
}
NETWORKS = {"IN", "FILE", "network.pkl"}
COUNTS = {"N": "2", "K": "1"}
PROGRAMS = (
    "make",
    "python",
    "passersby",
    "ray",
    "kubectl",
    "docker",
    "pip",
    "pre-commit",
    "export",
    "aws",
    "curl",
    "git",
    "helm",
    "cd",
)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page, continued lines joined; fenced, or inside a sentence or a table."""

    page: str
    text: str
    fenced: bool

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    def words(self) -> list[str]:
        """The command's words, with numbers for N."""
        return [COUNTS.get(word, word) for word in shlex.split(self.text, comments=True)]

    def matching(self, table: dict[str, str]) -> str | None:
        """What the first pattern of `table` that fits says, or None."""
        return next((way for pattern, way in table.items() if re.match(pattern, self.text)), None)


def fences(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: (language, text)."""
    return re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands_of(page: Path) -> list[Command]:
    """All commands of a page, each text once."""
    found = []
    for language, text in fences(page):
        first = text.split()[0]
        if language in ("sh", "bash", "console") or (not language and re.fullmatch(r"[a-z][\w.-]*", first)):
            lines = re.sub(r"\\\n\s*", " ", text).splitlines()
            found += [Command(page.name, " ".join(re.split(r"\s+#", line)[0].split()), True) for line in lines]
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        text = " ".join(span.split())
        if text.startswith(tuple(f"{program} " for program in PROGRAMS)):
            found.append(Command(page.name, text, False))
    return list({command.text: command for command in reversed(found) if command.text}.values())[::-1]


COMMANDS = [command for page in PAGES for command in commands_of(page)]
# A command that stands on several pages is run once: some refuse to write again what is there.
RUNNABLE = list({command.text: command for command in COMMANDS if command.matching(RUN) is not None}.values())
PYTHON = [(page.name, text) for page in PAGES for language, text in fences(page) if language in ("python", "py")]


def parse_job(words: list[str], unfinished: bool = False) -> object:
    """The configuration that `python FILE OPTIONS` would run with; FILE is one of ours. Fails where it would fail."""
    path = ROOT / (words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1])
    assert path.is_file(), f"no {path.relative_to(ROOT)}"
    named = re.search(r"(?:run_job\(main, |tyro\.cli\()(\w+)", path.read_text().split("__main__")[1])
    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            options = words[3 if words[1] == "-m" else 2 :]
            # Without tyro: a program for machines that lack it.
            return tyro.cli(getattr(module, named[1]), args=options) if named else module.parser().parse_args(options)
    except SystemExit as end:
        if end.code != 0 and not (unfinished and "equired" in said.getvalue()):
            pytest.fail(said.getvalue())
        return None


def parse_ray(words: list[str], fenced: bool) -> None:
    """Read a `ray` command line by Ray's own parser; the job inside is parsed as well."""
    from ray.scripts.scripts import cli

    group, name, rest = cli, "ray", words[1:]
    try:
        with click.Context(cli, info_name="ray") as context:
            while isinstance(group, click.Group):
                if not rest and not fenced:
                    return  # the name of a group of commands, in a sentence
                name, group, rest = group.resolve_command(context, rest)
            context = group.make_context(name, list(rest), parent=context)
    except click.MissingParameter:
        if fenced:
            raise
        return  # `ray job submit`, in a sentence
    for value in (context.params.get("cluster_config_file"), context.params.get("working_dir")):
        assert value is None or (ROOT / value).exists(), f"no {value}"
    entrypoint = list(context.params.get("entrypoint") or ())
    if entrypoint and (fenced or entrypoint[0] == "python"):
        assert "--working-dir" in words, "without it the job finds none of its modules"
        parse_job(entrypoint)


def parse_foreign(words: list[str]) -> None:
    """What can be known of a command of a program that is not here: files of ours that it names exist."""
    for word in words:
        assert not word.endswith((".yaml", ".json", ".toml", ".txt")) or (ROOT / word).is_file(), f"no {word}"


def place(word: str, folder: Path) -> str:
    """A word of a page, for a run in `folder`."""
    if word in NETWORKS:
        return str(DEMO_NETWORK)
    for name, where in PLACES.items():
        if word == name or word.startswith(f"{name}/"):
            return f"{folder / where}{word[len(name) :]}"
    return word


def check_outs(words: list[str], folder: Path) -> None:
    """Whatever a command writes must stay in the folder."""
    for flag, value in zip(words, words[1:], strict=False):
        assert flag != "--out" or Path(value).is_relative_to(folder), f"where does {value} go? Say it in PLACES"


def dry_make(words: list[str]) -> list[str]:
    """The commands that `make` would run, continued lines joined."""
    # The tests may themselves run under make, which would then speak of entering and leaving folders.
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    lines = subprocess.run([*words, "-n"], cwd=ROOT, env=outside, capture_output=True, text=True, check=True).stdout
    return re.sub(r"\\\n", " ", lines).strip().splitlines()


def recipe(words: list[str], folder: Path) -> list[str]:
    """The last command that `make` would run, its output redirected into `folder`."""
    given = [word for word in words if not word.startswith(("OUT=", "PYTHON="))]
    python, *rest = shlex.split(dry_make([*given, f"OUT={folder / PLACES['OUT']}"])[-1])
    assert python.endswith("/python")
    return ["python", *rest]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the commands write, one after the other, with a finished run in OUT and a crowd in TREE.

    The run is made as users make it, in a process and with a Ray of its own.
    """
    folder = tmp_path_factory.mktemp("readme")
    (folder / "out").mkdir()
    words = [*recipe(["make", "generate"], folder), *RUN[r"make( [A-Z]+=\S+)* generate$"].split()]
    check_outs(words, folder)
    words[0] = sys.executable
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_pages_have_commands():
    assert len([command for command in COMMANDS if command.fenced]) >= 8
    assert PYTHON


def test_the_readme_is_short_and_lists_every_job():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1500
    for name in job_summaries():
        assert f"`python jobs/{name.replace('-', '_')}.py " in text, f"README.md does not list the job {name}"


def test_the_readme_says_that_our_datasets_hides_the_library():
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "Our folder `datasets/` hides the library of that name" in text


def test_the_index_lists_every_page_with_a_sentence():
    listed = dict(re.findall(r"^\| \[[^]]+\]\(([^)]+)\) \| (.+) \|$", INDEX.read_text(), re.MULTILINE))
    assert sorted(listed) == [page.relative_to(INDEX.parent).as_posix() for page in SUBJECTS]
    assert all(len(sentence.split()) >= 5 for sentence in listed.values())


@pytest.mark.parametrize("page", SUBJECTS, ids=lambda page: page.name)
def test_a_page_opens_with_what_a_reader_came_for(page):
    assert re.match(r"# [^\n]+\n\n```(python)?\n", page.read_text()), f"{page.name}: begin with a command"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        assert "://" in target or (page.parent / target).exists(), f"{page.name}: no {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_ours_that_a_page_names_exist(page):
    folders = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for name in re.findall(rf"`((?:{'|'.join(folders)})/[\w./-]+\.(?:py|js|json|yaml|safetensors))`", page.read_text()):
        assert "NAME" in name or (ROOT / name).is_file(), f"{page.name}: no {name}"


def test_the_arrows_of_the_picture_are_those_of_the_contract():
    (picture,) = (text for language, text in fences(ROOT / "CONTRIBUTING.md") if language == "mermaid")
    drawn = set(re.findall(r"(\w+)(?:\[[^]]*\])? --> (\w+)", picture))
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = ([layer.split(" | ") for layer in c["layers"]] for c in contracts if c["type"] == "layers")
    assert drawn == {(a, b) for above, below in zip(layers, layers[1:], strict=False) for a in above for b in below}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_known_kind(page):
    for language, text in fences(page):
        first = text.split()[0]
        known = language in ("sh", "bash", "console", "python", "py", "text", "yaml", "json", "mermaid")
        assert known or first in PROGRAMS or "/" in first, f"{page.name}: give the block of {first!r} a language"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_documented_command_is_one_that_exists(command):
    assert command.matching(RUN) is not None or command.matching(PARSED), (
        f"{command}: say in this file how it is run (RUN), or why it is not (PARSED)"
    )
    words = command.words()
    if words[0] == "python":
        parse_job(words, unfinished=not command.fenced)
    elif words[0] == "passersby":
        if words[1:] not in ([], ["--help"], ["JOB", "--help"]):
            job = f"jobs/{words[1].replace('-', '_')}.py"
            parse_job(["python", job, *words[2:]], unfinished=not command.fenced)
    elif words[0] == "ray":
        parse_ray(words, command.fenced)
    elif words[0] == "make" and shutil.which("make"):
        for line in dry_make(words):
            if line.split()[0].endswith("/python") and line.split()[1].startswith("jobs/"):
                parse_job(shlex.split(line))
    else:
        parse_foreign(words)


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNNABLE, ids=str)
def test_a_documented_command_does_what_it_says(command, folder, call):
    words = recipe(command.words(), folder) if command.text.startswith("make") else command.words()
    python, file, *rest = [place(word, folder) for word in [*words, *command.matching(RUN).split()]]
    assert python == "python"
    check_outs(rest, folder)
    code, said, wrong = call(Path(file).stem, *rest)
    assert code == 0, f"{said[-2000:]}\n{wrong[-2000:]}"


@pytest.mark.parametrize(("page", "text"), PYTHON, ids=[f"{page}-{i}" for i, (page, _) in enumerate(PYTHON)])
@pytest.mark.slow
def test_documented_python_runs(page, text, folder):
    exec(compile(text.replace("OUT/", f"{folder / PLACES['OUT']}/"), page, "exec"), {})
