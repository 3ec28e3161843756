"""The presets of a study: sizes of its steps, and the recipe of each arm of its sweep."""

from pathlib import Path
from typing import TypedDict

from passersby.weights import DEMO_NETWORK


class Size(TypedDict):
    """A preset. generator: options of jobs/train_gan.py, its preset first; of_photographs: further ones, "key=value",
    for photographs where the user gives none; transfer: the network that it starts from, None for random weights;
    identity_loss: whether it learns from the judge too; kimg, people, variants, levels, seeds, steps: defaults of these
    options; reid: the preset of jobs/train_reid.py; look, card: words of these steps; choose: whether each arm chooses
    its recipe; gpu: whether the preset needs a GPU."""

    generator: dict[str, str]
    of_photographs: tuple[str, ...]
    transfer: Path | None
    identity_loss: bool
    kimg: float
    people: int
    variants: int
    levels: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    reid: str
    look: tuple[str, ...]
    card: tuple[str, ...]
    choose: bool
    gpu: bool


# By pairs, as in the preset tiny-pairs, at the size of photographs.
_PAIRS = {
    "preset": "person-128x64-2",
    "pairs": "True",
    "mapping_layers": "2",
    "style_mixing_probability": "0",
    "path_length_weight": "0",
    "one_pass": "True",
}
SIZES: dict[str, Size] = {
    "laptop": {
        "generator": {"preset": "tiny-pairs"},
        "of_photographs": ("projected=True", "intraclass_weight=100"),  # docs/market1501.md
        "transfer": DEMO_NETWORK,
        "identity_loss": True,
        "kimg": 60.0,
        "people": 200,
        "variants": 12,
        "levels": (80,),
        "seeds": (0, 1, 2),
        "steps": 600,
        "reid": "scarce-small",
        "look": ("--most-images", "1000"),
        "card": ("--quick",),
        "choose": False,
        "gpu": False,
    },
    "gpu": {
        "generator": _PAIRS,
        "of_photographs": (),  # not measured at this size
        "transfer": None,
        "identity_loss": False,
        "kimg": 2000.0,
        "people": 1000,
        "variants": 16,
        "levels": (320,),
        "seeds": (0, 1, 2),
        "steps": 6000,
        "reid": "scarce",
        "look": (),
        "card": (),
        "choose": False,
        "gpu": True,
    },
    "cluster": {
        "generator": _PAIRS,
        "of_photographs": (),  # not measured at this size
        "transfer": None,
        "identity_loss": False,
        "kimg": 5000.0,
        "people": 4000,
        "variants": 16,
        "levels": (160, 640),
        "seeds": (0, 1, 2, 3, 4),
        "steps": 12_000,
        "reid": "scarce",
        "look": (),
        "card": (),
        "choose": True,
        "gpu": True,
    },
}
CHOICES = ("plain", "apart", "changes", "changes-first")
CHOOSE_PEOPLE = 100  # people whom jobs/sweep.py --choose sets aside
# The arms without a choice of the study's own: what was best for each, measured. On drawn people (docs/augmentation.md)
# changes help, further real people to the last step, and artificial people where they are kept apart from real
# pictures. On photographs (docs/market1501.md) pictures as they are were best for all, and artificial people apart.
APART, CHANGES_APART, FIRST = "apart", "changes-apart", "changes-first"
DRAWN = {
    "C": "C: extras=none recipe=changes-first",
    "G": "G: extras=generated recipe={recipe}",
    "U": "U: extras=real recipe=changes",
    "S": "S: extras=single recipe=changes-first",
}
PHOTOGRAPHS = {
    "C": "C: extras=none recipe=plain",
    "G": "G: extras=generated recipe={recipe}",
    "U": "U: extras=real recipe=plain",
    "S": "S: extras=single recipe=plain",
}
