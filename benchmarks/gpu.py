"""Measure everything that matters on a GPU in some minutes: speed, memory, accuracy, each beside what is possible.

    python benchmarks/gpu.py --minutes 10 --out OUT
    python benchmarks/gpu.py --parts ceilings layers --out OUT
    python benchmarks/gpu.py --device cpu --tiny --out OUT

It needs PyTorch, NumPy, OpenCV, PyArrow and what these bring, but no Ray. Networks have random weights, which cost the
same time as trained ones. Parts run in the order of their value, each within its share of the time. OUT/gpu.json is
written after every figure, so that a run that is cut off keeps what it has; OUT/table.md is the table for
docs/performance.md, which the run also prints at its end.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.gpu_parts import evaluation, generation, iterations, layers, learning
from benchmarks.gpu_parts.common import TINY, Bench, Figure, Sizes, short
from passersby.devices import exact_numbers
from passersby.errors import InputError
from passersby.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 30  # a run that hangs is ended so long after its time, with what it has


class Part(NamedTuple):
    """A part of the run. share: of the time, in seconds of a run of ten minutes."""

    name: str
    measure: Callable[[Bench], Iterator[Figure | str]]
    share: float


def parts(options: argparse.Namespace) -> list[Part]:
    """All parts in the order of their value."""
    return [
        Part("ceilings", layers.ceilings, 15),
        Part("tests", functools.partial(gpu_tests, out=options.out), 60),
        Part("layers", layers.layers, 90),
        Part("filters", layers.filters, 5),
        Part("iterations", iterations.iterations, 130),
        Part("generation", functools.partial(generation.generation, yolo_weights=options.yolo_weights), 60),
        Part("generators", layers.network, 30),
        Part("formats", iterations.formats, 40),
        Part("reid", learning.reid, 50),
        Part("inversion", learning.inversion, 35),
        Part("scores", evaluation.scores, 20),
        Part("ranking", evaluation.ranking, 15),
        Part("profile", iterations.profile, 20),
    ]


def gpu_tests(bench: Bench, out: Path) -> Iterator[Figure]:
    """The tests that need a GPU, in a process of their own; their output goes to OUT/tests.txt."""
    if not bench.is_cuda:
        yield Figure("tests on a GPU", None, "passed", note="there is no GPU")
        return
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *map(str, files)]
    command.append("--continue-on-collection-errors")  # some files test what needs packages that are not here
    seconds = max(bench.ends - time.monotonic(), 10)
    with (out / "tests.txt").open("w") as log:
        try:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=False)
            note = ""
        except subprocess.TimeoutExpired:
            note = f"ended after {seconds:.0f} s; "
    lines = (out / "tests.txt").read_text().splitlines()
    last = lines[-1] if lines else "no output"
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    note += "" if counts else last[:200]
    note += ", ".join(f"{count} {word}" for word, count in counts.items() if word != "passed")
    failed = [line.split()[1] for line in lines if line.startswith("FAILED")]
    yield Figure("tests on a GPU", counts.get("passed"), "passed", note="; ".join(filter(None, [note, *failed])))


PART_NAMES = [part.name for part in parts(argparse.Namespace(out=None, yolo_weights=None))]


# ---- The results, on disk after every figure


class Results:
    """What a run knows so far, as OUT/gpu.json."""

    def __init__(self, out: Path, about: dict[str, Any]):
        self.path = out / "gpu.json"
        self.values: dict[str, Any] = about | {"parts": []}

    def begin(self, name: str) -> None:
        """A new part."""
        self.values["parts"].append({"part": name, "state": "running", "seconds": None, "figures": []})
        self.write()

    def add(self, figure: Figure) -> None:
        """A figure of the present part."""
        values = {name: value for name, value in dataclasses.asdict(figure).items() if value not in ("", False, None)}
        self.values["parts"][-1]["figures"].append(values)
        self.write()

    def end(self, state: str, seconds: float, error: str | None = None) -> None:
        """The end of the present part: done or failed."""
        self.values["parts"][-1] |= {"state": state, "seconds": round(seconds, 1)} | ({"error": error} if error else {})
        self.write()

    def write(self) -> None:
        """Write the file whole."""
        write_atomically(self.path, (json.dumps(self.values, indent=1) + "\n").encode())

    def table(self) -> str:
        """The figures as the page takes them."""
        v = self.values
        device, software = v["device"], ", ".join(f"{name} {text}" for name, text in v["software"].items())
        lines = [f"{device}; {software}; commit {v['commit']}:", "", "```", v["command"], "```", ""]
        lines += ["| what | measured | bytes and FLOP allow | aim | note |", "|---|---|---|---|---|"]
        for part in v["parts"]:
            shown = [figure for figure in part["figures"] if not figure.get("detail")]
            cells = [
                (
                    figure["name"],
                    _value(figure, "value"),
                    _value(figure, "floor"),
                    figure.get("aim"),
                    figure.get("note"),
                )
                for figure in shown
            ]
            lines += [f"| {' | '.join(cell or '' for cell in row)} |" for row in cells]
            if part["state"] == "failed":
                lines.append(f"| the part {part['part']} | | | | failed: {part['error'].splitlines()[-1][:200]} |")
            elif part["state"] == "running":
                lines.append(f"| the part {part['part']} | | | | was cut off |")
        return "\n".join(lines) + "\n"


def _value(figure: dict[str, Any], key: str) -> str:
    if figure.get(key) is None:
        return ""
    value = figure[key]
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {figure.get('unit', '')}".strip()


def about(options: argparse.Namespace) -> dict[str, Any]:
    """The hardware, the software and the command."""
    software = {"Python": platform.python_version(), "torch": torch.__version__}
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        device = f"{properties.name} with {properties.total_memory / 1e9:.0f} GB"
        software |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
        software |= {"driver": driver} if (driver := _driver()) else {}
    else:
        device = f"{platform.machine()} CPU"
    try:
        import triton

        software["triton"] = triton.__version__
    except ImportError:
        software["triton"] = "none"
    command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]) if sys.argv[0].endswith("gpu.py") else ""
    return {
        "command": command,
        "commit": options.commit or _commit(),
        "device": f"{device}, {os.cpu_count()} CPU cores",
        "software": software,
        "minutes": options.minutes,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _commit() -> str:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


# ---- The run


def parser() -> argparse.ArgumentParser:
    """What reads the command line; the machines of this program have no tyro."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder for gpu.json and table.md")
    parser.add_argument("--minutes", type=float, default=10, help="time for everything (default: 10)")
    parser.add_argument("--parts", nargs="+", choices=PART_NAMES, metavar="PART", help=f"of {', '.join(PART_NAMES)}")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the program itself")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8), help="CPU threads (default: 8)")
    parser.add_argument("--yolo-weights", type=Path, help="yolov4-tiny.weights with its .cfg; without it random ones")
    parser.add_argument("--commit", help="the commit of this folder, where git does not know it")
    return parser


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options. Raises InputError for those that do not go together."""
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch finds no CUDA device here; --device cpu --tiny tries the program without one")
    if options.device == "cpu" and not options.tiny:
        raise InputError("--device cpu: the sizes of a GPU would take hours there; add --tiny")
    if not options.minutes > 0 or options.threads < 1:
        raise InputError(f"--minutes {options.minutes:g} --threads {options.threads}: both must be above 0")
    if options.yolo_weights and not options.yolo_weights.is_file():
        raise InputError(f"--yolo-weights {options.yolo_weights}: there is no such file")
    if (options.out / "gpu.json").exists():
        raise InputError(f"--out {options.out} holds the figures of an earlier run: give another folder")
    return options


def main(options: argparse.Namespace) -> int:
    """Run the parts; returns 0 where all of them ran through, 1 where some failed."""
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    bench = Bench(options.device, TINY if options.tiny else Sizes(), options.threads)
    results = Results(options.out, about(options))
    chosen = [part for part in parts(options) if options.parts is None or part.name in options.parts]
    ends = started + 60 * options.minutes
    watch = threading.Timer(60 * options.minutes + GRACE_SECONDS, give_up, [results])
    watch.daemon = True
    watch.start()
    try:
        return 0 if measure(chosen, bench, results, ends) else 1
    finally:
        watch.cancel()
        finish(results)


@exact_numbers()
def measure(chosen: Sequence[Part], bench: Bench, results: Results, ends: float) -> bool:
    """Run the parts until `ends` (seconds of time.monotonic), each with its share; whether all of them ran through."""
    whole = True
    for index, part in enumerate(chosen):
        clock = time.monotonic()
        left = max(ends - clock, 0.0)
        bench.ends = clock + left * part.share / sum(later.share for later in chosen[index:])
        results.begin(part.name)
        print(f"{part.name}: {bench.ends - clock:.0f} s", flush=True)
        try:
            for figure in part.measure(bench):
                if isinstance(figure, str):
                    write_atomically(results.path.parent / f"{part.name}.txt", figure.encode())
                    continue
                results.add(figure)
                value = _value(dataclasses.asdict(figure), "value")
                print(f"  {figure.name}: {value}{f' ({figure.note})' if figure.note else ''}", flush=True)
                torch.set_num_threads(bench.threads)  # actors set their own number
            results.end("done", time.monotonic() - clock)
        except Exception as error:  # noqa: BLE001  whatever a part raises, the others still say something
            whole = False
            results.end("failed", time.monotonic() - clock, traceback.format_exc())
            print(f"  failed: {short(error)}", flush=True)
            bench.reset_peak()
            bench.wait()  # raises where the device is lost: no later part could run
    return whole


def finish(results: Results) -> None:
    """Write and print the table."""
    table = results.table()
    write_atomically(results.path.with_name("table.md"), table.encode())
    print(f"\n{table}", flush=True)


def give_up(results: Results) -> None:
    """End a run that hangs, for example in a library's call that takes minutes."""
    print(f"the time was up {GRACE_SECONDS} s ago, and {results.values['parts'][-1]['part']} does not end", flush=True)
    finish(results)
    os._exit(3)


if __name__ == "__main__":
    try:
        sys.exit(main(parsed()))
    except InputError as error:
        print(f"gpu: {error}", file=sys.stderr)
        sys.exit(2)
