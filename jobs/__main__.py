"""The program `passersby`: `passersby generate --out OUT` does what `python jobs/generate.py --out OUT` does."""

import ast
import difflib
import runpy
import sys
from pathlib import Path

from jobs import common

FOLDER = Path(__file__).parent
_NOT_JOBS = {"__init__", "__main__", "common"}
USAGE = """usage: passersby JOB [OPTIONS]

Synthetic pedestrians for training person re-identification. Every job takes --help. The jobs:

{jobs}

Example: passersby generate --people 24 --variants 16 --out /data/people"""


def job_summaries() -> dict[str, str]:
    """Name of each job as it is typed -> the first sentence of its file's docstring; nothing is imported."""
    paths = sorted(path for path in FOLDER.glob("*.py") if path.stem not in _NOT_JOBS)
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in paths}
    return {name.replace("_", "-"): doc.splitlines()[0] for name, doc in docs.items()}


def usage() -> str:
    """What `passersby --help` prints: one line a job."""
    summaries = job_summaries()
    width = max(map(len, summaries))
    return USAGE.format(jobs="\n".join(f"  {name:{width}}  {summary}" for name, summary in summaries.items()))


def main() -> None:
    """Run the job that the first argument names, with the other arguments, as if its file were started.

    Exit codes: the job's; 0 after --help; 2, with one line on stderr, where no job has that name.
    """
    name = sys.argv[1].replace("_", "-") if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0)
    jobs = job_summaries()
    if name not in jobs:
        near = difflib.get_close_matches(name, jobs, 1)
        advice = f"did you mean {near[0]}?" if near else "see passersby --help"
        print(f"error: passersby has no job {sys.argv[1]}: {advice}", file=sys.stderr)
        sys.exit(2)
    common.PROGRAM = f"passersby {name}"
    del sys.argv[1]
    # As a program of its own, so that what a job does only when it is started (`__main__`) is done here too.
    runpy.run_module(f"jobs.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
