"""Networks, metrics and filters of pictures of people, and their files, in plain PyTorch and NumPy.

Data sets, training, and everything that runs on Ray are in the folders beside this one, which this package never
imports.

The names below are for notebooks. Each is loaded at its first use, so that `import passersby` takes no time. `help`,
as in `help(passersby.load_generator)`, shows an example of the use of each.
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

if not TYPE_CHECKING:  # because of `__getattr__` a type checker would accept every name
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
