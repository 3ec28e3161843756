"""Networks, metrics and filters of pictures of people, and the files they live in: plain PyTorch and NumPy.

Data sets, training, and all that runs on Ray stand in the folders beside this one; nothing here imports them.

The names below are what a notebook needs. Each is loaded at its first use, so that `import passersby` takes no time;
`help(passersby.load_generator)` shows an example of its use, and so for the others.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passersby.errors import InputError
    from passersby.manifest import read_manifest
    from passersby.metrics.ranking import evaluate_ranking
    from passersby.notebook import load_generator, pedestrian_scores
    from passersby.reid.checkpoint import load_reid
    from passersby.yolo.pedestrian_filter import PedestrianFilter

__all__ = [
    "InputError",
    "PedestrianFilter",
    "evaluate_ranking",
    "load_generator",
    "load_reid",
    "pedestrian_scores",
    "read_manifest",
]

if not TYPE_CHECKING:  # a type checker would believe that every name is there
    _MODULES = {
        "InputError": "passersby.errors",
        "PedestrianFilter": "passersby.yolo.pedestrian_filter",
        "evaluate_ranking": "passersby.metrics.ranking",
        "load_generator": "passersby.notebook",
        "load_reid": "passersby.reid.checkpoint",
        "pedestrian_scores": "passersby.notebook",
        "read_manifest": "passersby.manifest",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)

    def __dir__():
        return sorted({*globals(), *__all__})
