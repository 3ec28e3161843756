"""The program `passersby`, which starts the program of the folder jobs/ (`jobs/__main__.py`).

It stands here because others also have a folder called `jobs`, which may come before ours on Python's path. Nothing is
imported from jobs/: a library must not need the programs that use it.
"""

import runpy

from passersby.environment import own_packages_first


def main() -> None:
    """Run jobs/__main__.py of the folder that this package lies in, with the command line as it is."""
    own_packages_first()()
    runpy.run_module("jobs", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
