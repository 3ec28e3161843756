"""The study's published curves: what adding generated people, or pictures of real people, did to its scores.

"Generation of Images using Generative Adversarial Networks for Augmentation of Training Data in Re-identification
Models" (thesis, Universidad Autonoma de Yucatan): Market-1501, ResNet-50, 60 epochs, one training a row, at unequal
numbers of steps; mAP by the trapezoid formula.
"""

# level -> (Rank-1, mAP), 0..1
_PEOPLE = {
    0: (0.893112, 0.742632), 10: (0.888955, 0.743795), 20: (0.892221, 0.745116), 30: (0.891627, 0.741414),
    40: (0.890143, 0.748799), 50: (0.894299, 0.746853), 60: (0.901128, 0.751229), 70: (0.892815, 0.748843),
    80: (0.892518, 0.748257), 90: (0.899347, 0.758927), 100: (0.898159, 0.755366), 150: (0.898753, 0.761433),
    200: (0.896378, 0.763768), 250: (0.893705, 0.762484), 280: (0.903504, 0.767955), 300: (0.896081, 0.768727),
    320: (0.896675, 0.769509),
}  # fmt: skip
_VARIANTS = {
    0: (0.893112, 0.742632), 5: (0.886876, 0.719692), 10: (0.878860, 0.704901), 15: (0.870546, 0.686172),
    20: (0.865796, 0.674047), 25: (0.861342, 0.663773), 30: (0.850950, 0.654492), 35: (0.845606, 0.635790),
    40: (0.841449, 0.640035), 45: (0.826306, 0.630469), 60: (0.829869, 0.624382), 70: (0.832245, 0.623470),
    85: (0.825713, 0.614014), 105: (0.817399, 0.605653), 135: (0.813539, 0.601084),
}  # fmt: skip
STUDY_CURVES = {"artificial-people": _PEOPLE, "variants-of-real-people": _VARIANTS}
SCORES = ("rank1", "mAP")
CAVEAT = (
    "One training a level, on Market-1501, with more steps at higher levels, and by a generator that had seen people "
    "of the test set: its shape can be compared, its numbers cannot."
)


def study_curve(sweep: str, score: str) -> list[tuple[int, float]]:
    """(level, score 0..1) of a sweep and one of SCORES; empty where the study has no such curve."""
    place = SCORES.index(score)
    return [(level, values[place]) for level, values in STUDY_CURVES.get(sweep, {}).items()]
