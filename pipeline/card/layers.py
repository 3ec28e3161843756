"""Which layers hold the pose of a network's people.

Variants take a range of layers from another code, as jobs/generate.py makes them. A trial with few people looks for the
largest ranges that keep the clothes. The best of what it tried, and the study's groups, are then measured with more
people. RULE says which range becomes that of `--layers pose`.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import TypeAlias

from datasets.runs.plan import layer_groups, layers_text, parse_layers
from passersby.options import Json
from pipeline.card.judge import Figures, Judge, Measurer
from pipeline.card.people import Maker, RealSample, work
from reporting.progress import ProgressLine
from reporting.tables import percent

Range: TypeAlias = tuple[int, int]  # the first and the last of contiguous layers

CLEAR = 0.9  # wanted: this share of variants is nearest to its own person by clothes
MOVES = 1 / 3  # a pose moves if its edges move by this share of the distance to another person
RULE = (
    f"of the groups that move the pose by {MOVES:.0%} or more of the distance to another person: where some keep the "
    f"clothes of {CLEAR:.0%} of variants or more, the one of them that moves the pose most; else the one that keeps "
    "most. Where no group moves the pose so far, the one that moves it most."
)
NAMED = ("coarse", "middle", "fine")

# More layers change more. So ranges within a range that keeps the clothes keep them too, and move the pose less. A
# trial with few people looks for the largest ranges that keep the clothes of TRIED of the variants, which is below
# CLEAR, as 36 variants give it to about 5 points. What it tried on its way is then measured with all people.
TRIAL_PEOPLE, TRIAL_VARIANTS, TRIED = 12, 4, 0.8


def best_group(groups: Mapping[str, Figures]) -> str:
    """The group that RULE chooses; of equal ones the first."""
    moving = [name for name, figures in groups.items() if figures["pose_moved"] >= MOVES]
    clear = [name for name in moving if _kept(groups[name]) >= CLEAR]
    if clear:
        return max(clear, key=lambda name: groups[name]["pose_moved"])
    if moving:
        return max(moving, key=lambda name: _kept(groups[name]))
    return max(groups, key=lambda name: groups[name]["pose_moved"])


def _kept(figures: Figures) -> float:
    return figures["nearest_own"]["value"]


def _short(figures: Figures) -> Figures:
    return {"nearest_own": round(_kept(figures), 3), "pose_moved": round(figures["pose_moved"], 3)}


def largest_ranges(count: int, keeps: Callable[[Range], bool]) -> list[Range]:
    """The ranges of `count` layers that keep the clothes, and that lie in no larger such range; by 2 * count trials.

    keeps: whether a range keeps the clothes. It is taken as true for all ranges inside a range for which it is true.
    """
    ranges, first, last = [], 0, 0
    while last < count:
        if keeps((first, last)):
            last += 1
            continue
        if last > first and (not ranges or ranges[-1][1] < last - 1):
            ranges.append((first, last - 1))
        first += 1
        last = max(first, last)
    return ranges + [(first, count - 1)] * (first < count)


class Search:
    """Looks for the range that RULE chooses. measure: figures of a range, by the people of the trial or by all."""

    def __init__(self, count: int, measure: Callable[[Range, bool], Figures]):
        self.count, self.measure = count, measure
        self.trials: dict[Range, Figures] = {}
        self.groups: dict[Range, Figures] = {}

    def _keeps(self, layers: Range) -> bool:
        self.trials[layers] = self.measure(layers, True)
        return _kept(self.trials[layers]) >= TRIED

    def run(self) -> None:
        """Fill `trials` and `groups`: figures of the ranges that were tried, and of those that were measured.

        The range that moves the pose most of those that are clear is found by bisection: what moves the pose more keeps
        less of the clothes.
        """
        largest_ranges(self.count, self._keeps)
        moving = [layers for layers in self.trials if self.trials[layers]["pose_moved"] >= MOVES]
        order = [layers for layers in moving if _kept(self.trials[layers]) >= TRIED]
        order.sort(key=lambda layers: -self.trials[layers]["pose_moved"])
        first, end = 0, len(order)
        while first < end:
            middle = (first + end) // 2
            figures = self.groups[order[middle]] = self.measure(order[middle], False)
            first, end = (first, middle) if _kept(figures) >= CLEAR else (middle + 1, end)
        if not any(_kept(figures) >= CLEAR for figures in self.groups.values()):
            by_pose = max(self.trials, key=lambda layers: self.trials[layers]["pose_moved"])
            best = max(moving, key=lambda layers: _kept(self.trials[layers])) if moving else by_pose
            self.groups[best] = self.groups.get(best) or self.measure(best, False)


def _name(layers: Range) -> str:
    return layers_text(range(layers[0], layers[1] + 1))


def measure_layers(maker: Maker, judge: Judge | None, real: RealSample | None, gallery: list[bytes]) -> dict[str, Json]:
    """The section "layers" of a network's card: which layers hold the pose, and the figures that say so.

    maker: of the network and the sample. real: real people, who are measured the same way. gallery: one picture each of
    people of the network, the first of whom are measured. Raises InputError where a picture is not finite.
    """
    sample, count = maker.sample, maker.network.generator.config.num_ws
    measurer = Measurer(gallery, judge)

    def measure(layers: Range, trial: bool) -> Figures:
        people, variants = (min(TRIAL_PEOPLE, sample.people), TRIAL_VARIANTS) if trial else full
        with ProgressLine(*work(people, variants)) as line:
            figures = measurer(maker(range(layers[0], layers[1] + 1), people, variants, line), judged=not trial)
        kept, moved = percent(_kept(figures)), percent(figures["pose_moved"])
        about = f"{people} people: own clothes nearest {kept}, pose moved {moved}"
        print(f"layers {_name(layers)}, {about}", file=sys.stderr, flush=True)
        return figures

    full, study = (sample.people, sample.variants), {name: layer_groups(count)[name] for name in NAMED}
    search = Search(count, measure)
    search.run()
    for layers in study.values():
        if layers not in search.groups:
            search.groups[layers] = measure(layers, False)
    groups = {_name(layers): figures for layers, figures in sorted(search.groups.items())}
    best = best_group(groups)
    return {
        "pose": list(parse_layers(best, count)),
        "rule": RULE,
        "groups": groups,
        "study": {name: "{}-{}".format(*layers) for name, layers in study.items()},
        "sample": dataclasses.asdict(sample),
        "other_people_edge_distance": measurer.others,
        "trial": {_name(layers): _short(figures) for layers, figures in search.trials.items()},
        "trial_sample": {"people": min(TRIAL_PEOPLE, sample.people), "variants": TRIAL_VARIANTS},
        "real": None if real is None else real_figures(real, judge),
        "judge": judge and {"sha256": judge.network.sha256, "threshold": judge.threshold},
    }


def real_figures(real: RealSample, judge: Judge | None) -> Figures:
    """The figures of real people, measured as the network's people are."""
    people = {"people": len(real.chosen), "gallery": len(real.gallery)}
    return people | Measurer(real.gallery, judge)(real.chosen)
