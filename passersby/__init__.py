"""Networks, metrics and filters of pictures of people, and the files they live in: plain PyTorch and NumPy.

Data sets, training, and all that runs on Ray stand in the folders beside this one; nothing here imports them.

The names below are what a notebook needs. Each is loaded at its first use, so that `import passersby` takes no time;
`help(passersby.load_generator)` shows an example of its use, and so for the others.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passersby.errors import InputError
    from passersby.files import read_manifest
    from passersby.metrics.ranking import evaluate_ranking
    from passersby.metrics.reranking import k_reciprocal_distances
    from passersby.reid.checkpoint import load_reid
    from passersby.stylegan3.checkpoint import load_generator
    from passersby.yolo.pedestrian_filter import PedestrianFilter, pedestrian_scores

__all__ = [
    "InputError",
    "PedestrianFilter",
    "evaluate_ranking",
    "k_reciprocal_distances",
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
        "k_reciprocal_distances": "passersby.metrics.reranking",
        "load_generator": "passersby.stylegan3.checkpoint",
        "load_reid": "passersby.reid.checkpoint",
        "pedestrian_scores": "passersby.yolo.pedestrian_filter",
        "read_manifest": "passersby.files",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)

    def __dir__():
        return sorted({*globals(), *__all__})
