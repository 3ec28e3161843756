"""A GPU that is not there: steps run on fake CUDA tensors, and their waits for the device are counted."""

import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")


def build(folder: Path) -> tuple[Path | None, str]:
    """Build the library of `shim.cpp` in a folder. Returns it, or None and the reason why there is none."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None or sys.platform != "linux":
        return None, "no C++ compiler (c++, g++ or clang++) on a Linux"
    library = folder / "libcuda.so.1"
    words = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(SOURCE)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return (library, "") if done.returncode == 0 else (None, f"{compiler} cannot build {SOURCE.name}: {done.stderr}")
