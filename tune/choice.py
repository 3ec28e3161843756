"""Choose each arm's recipe on people set aside from training, before anybody of query and gallery is looked at.

The choice is a sweep of its own, in OUT/choice: every arm with every recipe, at the highest level, with one seed. Its
data are a table of the training pictures, in which some people are query and gallery. So the sweep that answers the
question uses its test people once.
"""

import collections
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.people.listing import GALLERY, QUERY, TRAIN, Listing, drawn_names
from datasets.people.readers import read_split
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.options import Json
from tune.options import NONE, RECIPES
from tune.planning import SweepOptions, plan_sweep
from tune.sweep import SWEEP_FILE, Sweep, continue_sweep
from tune.table import Row

CHOICE, PEOPLE = "choice", "people.parquet"


def plan_choice(sweep: Sweep, options: SweepOptions, recipes: Sequence[str], people: int, output: Output) -> Sweep:
    """The sweep that chooses among `recipes`, on `people` set aside; its data are written to OUT/choice.

    sweep and options: the sweep that answers the question, planned with any recipe. Raises InputError where nothing can
    be chosen, where OUT holds a sweep or a choice of something else, and as `plan_sweep` does.
    """
    _check(sweep, recipes, output)
    draws = {training.label_draw for training in sweep.arms.values()}
    if len(draws) > 1:
        raise InputError(f"--choose: the arms have the label draws {sorted(draws)}: give one for all arms")
    folder = Output(f"{output.secret_address}/{CHOICE}")
    content = set_aside(sweep.root, people, draws.pop())
    before = folder.read(PEOPLE)
    if before not in (None, content):
        raise InputError(f"{folder.address(PEOPLE)} sets other people aside: choose another --out")
    if before is None:
        folder.write(PEOPLE, content)
    choice = dataclasses.replace(
        options,
        data=Path(folder.secret_address) / PEOPLE,
        levels=(sweep.levels[-1],),
        seeds=(sweep.seeds[0],),
        cross=(*options.cross, f"recipe={','.join(recipes)}"),
        allow_leak=True,  # the generator may have seen the pictures of those who are set aside, without labels
    )
    if options.runs_per_seed:
        choice = dataclasses.replace(choice, runs_per_seed=options.runs_per_seed[:1])
    return continue_sweep(folder, plan_sweep(choice))


def _check(sweep: Sweep, recipes: Sequence[str], output: Output) -> None:
    if len(recipes) < 2 or len(set(recipes)) < len(recipes):
        raise InputError(f"--choose {' '.join(recipes)}: give two or more recipes, each once")
    unknown = [recipe for recipe in recipes if recipe not in RECIPES]
    if unknown:
        raise InputError(f"--choose {unknown[0]}: give recipes of {', '.join(RECIPES)}")
    if not sweep.controls():
        raise InputError("--choose: without a control nothing is compared: give one, such as --arms C G")
    text = output.read(SWEEP_FILE)
    try:
        chosen = text is None or json.loads(text)["choice"]
    except (ValueError, KeyError, TypeError):
        chosen = None
    if not chosen:
        raise InputError(f"--choose: {output.root_address} has a sweep without such a choice: choose another --out")


def set_aside(root: str | Path, people: int, draw: int) -> bytes:
    """A Parquet table of the training pictures of `root`, of which the last people of a draw are query and gallery.

    draw: the seed of the labelled people, who come first in the draw. A query is a person's first picture at each
    camera that has more of the person, or else the first of all; the gallery is the rest. Raises InputError for too
    many people, and for data that are not files.
    """
    listing = read_split(root, TRAIN)
    if listing.archive is not None or not all(isinstance(content, Path) for content in listing.contents):
        raise InputError(f"--choose with --data {root}: pictures must be files: unpack them")
    names = drawn_names(listing.people.values(), draw)
    if not 2 <= people <= len(names) - 2:
        raise InputError(f"--choose-people {people}: give 2 to {len(names) - 2} of the {len(names)} training people")
    last = set(names[-people:])
    columns = {
        "path": [str(content) for content in listing.contents],
        "identity": [listing.people.get(identity, str(identity)) for identity in listing.identities.tolist()],
        "camera": [str(camera) for camera in listing.cameras.tolist()],
    }
    queries = _queries(listing)
    columns["split"] = [
        TRAIN if name not in last else QUERY if index in queries else GALLERY
        for index, name in enumerate(columns["identity"])
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _queries(listing: Listing) -> set[int]:
    """The images of a listing that are queries if their people are."""
    pairs = list(zip(listing.identities.tolist(), listing.cameras.tolist(), strict=True))
    counts = collections.Counter(pairs)
    first: dict[tuple[int, int], int] = {}
    first_of_all: dict[int, int] = {}
    for index, pair in enumerate(pairs):
        first.setdefault(pair, index)
        first_of_all.setdefault(pair[0], index)
    queries = {index for pair, index in first.items() if counts[pair] > 1}
    served = {listing.identities[index] for index in queries}
    return queries | {index for identity, index in first_of_all.items() if identity not in served}


def chosen_recipes(
    sweep: Sweep, choice: Sweep, rows: Iterable[Row], recipes: Sequence[str], people: int
) -> tuple[dict[str, str], dict[str, Json]]:
    """(name of an arm -> its best recipe by mAP, the record of the choice for sweep.json). Equal: the first is taken.

    rows: the finished trials of `choice`. Raises KeyError where one is missing.
    """
    scores = {(row["arm"], row["level"]): row["mAP"] for row in rows}
    level = choice.levels[-1]
    tried: dict[str, Mapping[str, float]] = {}
    for arm in sweep.arms:
        own_level = 0 if sweep.extras.get(arm) == NONE else level
        tried[arm] = {recipe: scores[f"{arm}, recipe={recipe}", own_level] for recipe in recipes}
    best = {arm: max(recipes, key=figures.__getitem__) for arm, figures in tried.items()}
    record: dict[str, Json] = {
        "people": people,
        "seed": choice.seeds[0],
        "level": level,
        "mAP": {arm: dict(figures) for arm, figures in tried.items()},
        "chosen": dict(best),
    }
    return best, record
