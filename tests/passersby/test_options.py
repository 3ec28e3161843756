"""Options that folders freeze: the rule for options that come later or go, for plans, trainings, sweeps and exports."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

from datasets.exports import record as export_record
from datasets.exports.selection import Options as ExportOptions
from datasets.latents import plan as inversion_plan
from datasets.latents.plan import InversionConfiguration
from datasets.runs import plan
from datasets.runs.configuration import Configuration, Origin
from datasets.storage.output import Output
from passersby import options
from passersby.errors import InputError
from passersby.options import Difference, canonical_sha256, check, defaults, differences, known_part, with_folder_values
from training.reid import start as reid_snapshot
from training.reid.config import ReidTraining
from tune import sweep as sweeps
from tune.leak_guard import DataSet
from tune.levels import GeneratedRun

PLAN = {
    "seed": 7, "variants": 51, "method": "mix", "layers": (5, 6), "amount": None, "truncation_psi": 0.7,
    "network": "a" * 64, "height": 128, "width": 64, "format": "jpeg", "jpeg_quality": 95, "unit_images": 512,
    "detector": "b" * 64, "reference_threshold": 0.6, "ssim_data_range": 4095.0,
}  # fmt: skip
INVERSION = {
    "encoder": "e", "network": "n", "identity": None, "perceptual": "p", "data": "d", "splits": ("train",),
    "pictures": None, "steps": 5, "refine": "w", "refine_steps": 100, "pivotal_steps": None, "unit_images": 64,
}  # fmt: skip

SWEPT = [
    "preset", "filters", "backbone", "neck", "stem", "height", "width", "last_stride", "embedding", "activation",
    "dropout", "pretrained", "people_labels", "variants_labels", "generated_smoothing", "temperature",
    "generated_weight", "generated_share", "generated_triplet", "ramp_epochs", "real_only_epochs",
    "separate_batchnorm", "epochs", "batch", "sampler", "instances", "optimizer", "lr", "backbone_lr_factor",
    "weight_decay", "schedule", "milestones", "warmup_epochs", "label_smoothing", "triplet_weight", "margin", "pad",
    "mirror", "erasing", "validation", "precision", "validation_epochs", "steps",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LaterConfiguration(Configuration):
    """A program that has gained an option."""

    glow: float = 0.25


@dataclasses.dataclass(frozen=True)
class LaterInversion(InversionConfiguration):
    """A program that has gained options."""

    glow: float = 0.25
    hues: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LaterTraining(ReidTraining):
    """A program that has gained options, one of them with a default that is not off."""

    glow: float = 0.25
    hues: tuple[str, ...] = ()

    def as_json(self) -> dict:
        return super().as_json() | {"hues": list(self.hues)}


# ---- the rule itself


def test_the_module_needs_the_standard_library_and_the_error_only():
    tree = ast.parse(Path(options.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert modules == {"dataclasses", "hashlib", "json", "collections.abc", "pathlib", "typing", "passersby.errors"}


def test_an_unknown_option_at_its_default_is_absent():
    values, default = {"batch": 8, "margin": None, "names": ()}, {"batch": 8, "margin": None, "names": []}
    assert known_part(values, {"batch"}, default) == {"batch": 8}
    assert known_part(values, set(), {}) == values  # nothing is known of defaults
    assert known_part(values | {"margin": 0.3}, {"batch"}, default) == {"batch": 8, "margin": 0.3}
    assert known_part(values, values.keys(), default) == values


def test_defaults_are_those_of_the_fields_as_json_has_them():
    @dataclasses.dataclass
    class Some:
        needed: int
        path: Path = Path("a/b")
        names: tuple[str, ...] = ("x",)
        more: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=lambda: {"a": (1,)})

    assert defaults(Some) == {"path": "a/b", "names": ["x"], "more": {"a": [1]}}
    assert options.stored_values(Some(1)) == {"needed": 1}
    assert options.stored_values(Some(1, names=()), always=("path",)) == {"needed": 1, "path": Path("a/b"), "names": ()}


def test_differences_name_the_option_and_both_values():
    stored, wanted = {"batch": 8, "gone": 3, "minutes": 1}, {"batch": 16, "names": ("a",), "minutes": 2}
    found = differences(stored, wanted, {"names": []}, free={"minutes"})
    assert found == [
        Difference("batch", 8, 16), Difference("names", [], ("a",)), Difference("gone", 3, None, gone=True),
    ]  # fmt: skip
    with pytest.raises(InputError) as refused:
        options.agree("something else", found)
    assert str(refused.value) == (
        '--out holds something else: batch is 8, not 16; names is [], not ["a"]; gone is 3, which this program does '
        "not have. Choose another --out, or the options of its first command"
    )
    options.agree("something else", [])
    assert str(differences({"gone": None}, {})[0]) == "gone is null, which this program does not have"
    assert differences({"names": ["a"]}, {"names": ("a",)}) == []
    assert differences({}, {"names": None}) == []


def test_a_folder_decides_what_a_command_does_not_give():
    assert with_folder_values({"a": 1, "b": None}, {"a": 5, "b": 6}, {"b"}) == {"a": 1, "b": 6}


def test_small_helpers_say_what_they_said():
    assert options.flag("max_minutes") == "max-minutes"
    assert options.short("f" * 64) == '"ffffffffffff..."'
    assert options.short((1, None)) == "[1, null]"
    assert canonical_sha256({"b": 1, "a": [None]}) == canonical_sha256({"a": (None,), "b": 1})
    assert canonical_sha256({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    check("--steps", 1, True, "1 to 100")
    with pytest.raises(InputError, match=r"^--steps 0: must be 1 to 100$"):
        check("--steps", 0, False, "1 to 100")


# ---- plans


def test_a_plan_goes_on_after_the_program_gained_an_option(tmp_path, monkeypatch):
    output = Output(str(tmp_path))
    old = plan.continue_plan(None, Configuration(**PLAN), 3)
    output.write("plan.json", old.to_json())
    monkeypatch.setattr(plan, "Configuration", LaterConfiguration)
    stored = plan.read_plan(output)
    assert stored.configuration == LaterConfiguration(**PLAN)
    assert plan.continue_plan(stored, LaterConfiguration(**PLAN), 3).to_json() == old.to_json()
    with pytest.raises(InputError, match=r"another configuration: glow is 0\.25, not 0\.5\. Choose"):
        plan.continue_plan(stored, LaterConfiguration(**PLAN, glow=0.5), 3)
    other = plan.continue_plan(None, LaterConfiguration(**PLAN, glow=0.5), 3)
    assert other.configuration.hash != old.configuration.hash
    output.write("plan.json", other.to_json())
    assert plan.read_plan(output) == other
    monkeypatch.setattr(plan, "Configuration", Configuration)  # the program loses it again
    with pytest.raises(InputError, match=r"is not a plan .* that this program does not have: glow is 0\.5\)"):
        plan.read_plan(output)


def test_a_plan_of_real_people_stores_no_later_option_at_its_default():
    real = {"latents": "t" * 64, "origins": (Origin("0002", "a/1.jpg", 3, 4),)}
    old, new = Configuration(**PLAN, **real), LaterConfiguration(**PLAN, **real)
    assert new.hash == old.hash
    assert list(old.values()) == [*PLAN, "recipe", "latents", "origins"]


def test_an_inversion_goes_on_after_the_program_gained_an_option(tmp_path, monkeypatch):
    output, counts = Output(str(tmp_path)), (2, 3)
    old = inversion_plan.continue_inversion(None, InversionConfiguration(**INVERSION), counts, None)
    output.write("plan.json", old.to_json())
    assert list(json.loads(old.to_json())["configuration"]) == [*INVERSION, "recipe"]
    assert old.configuration.hash == "e7c164ae95f8cc00936c66d9802c68d49cffad49c3311a0909e0fb27c6b9fc49"  # as ever
    monkeypatch.setattr(inversion_plan, "InversionConfiguration", LaterInversion)
    stored = inversion_plan.read_inversion_plan(output)
    assert (
        inversion_plan.continue_inversion(stored, LaterInversion(**INVERSION), counts, None).to_json() == old.to_json()
    )
    for changes, message in (
        ({"glow": 0.5}, r"glow is 0\.25, not 0\.5"),
        ({"hues": ("red",)}, r'hues is \[\], not \["red"\]'),
    ):
        other = LaterInversion(**INVERSION, **changes)
        assert other.hash != old.configuration.hash
        with pytest.raises(InputError, match=message):
            inversion_plan.continue_inversion(stored, other, counts, None)
    output.write(
        "plan.json",
        inversion_plan.continue_inversion(None, LaterInversion(**INVERSION, glow=0.5), counts, None).to_json(),
    )
    monkeypatch.setattr(inversion_plan, "InversionConfiguration", InversionConfiguration)
    with pytest.raises(InputError, match=r"that this program does not have: glow is 0\.5\)"):
        inversion_plan.read_inversion_plan(output)


@pytest.mark.parametrize("recipe", range(1, inversion_plan.RECIPE + 1))
def test_an_inversion_keeps_the_recipe_that_it_was_begun_with(recipe, tmp_path):
    output, counts = Output(str(tmp_path)), (2, 3)
    newest = InversionConfiguration(**INVERSION, recipe=inversion_plan.RECIPE)
    begun = inversion_plan.continue_inversion(None, dataclasses.replace(newest, recipe=recipe), counts, 1)
    output.write("plan.json", begun.to_json())
    for people in (1, 2):
        gone_on = inversion_plan.continue_inversion(inversion_plan.read_inversion_plan(output), newest, counts, people)
        assert gone_on.configuration == begun.configuration
        assert gone_on.hash == begun.hash
    later = begun.to_json().replace(b'"recipe": %d' % recipe, b'"recipe": 5')
    output.write("plan.json", later)
    with pytest.raises(InputError, match="recipe 5: must be 1 or 2 or 3 or 4; a later version began the folder"):
        inversion_plan.read_inversion_plan(output)


# ---- trainings


def test_a_training_goes_on_after_the_program_gained_an_option(tmp_path, monkeypatch):
    (tmp_path / reid_snapshot.NETWORK).touch()
    record = tmp_path / "config.json"
    old = ReidTraining(data=tmp_path, out=tmp_path)
    reid_snapshot.claim_folder(old)
    before = record.read_text()
    monkeypatch.setattr(reid_snapshot, "ReidTraining", LaterTraining)
    for changes, message in (
        ({"glow": 0.5}, r"with --glow 0\.25, not 0\.5: give the old value"),
        ({"hues": ("red",)}, r"with --hues \[\], not \['red'\]"),
        ({"seed": 1}, r"with --seed 0, not 1"),
    ):
        with pytest.raises(InputError, match=message):
            reid_snapshot.claim_folder(LaterTraining(**vars(old) | changes))
    assert record.read_text() == before
    reid_snapshot.claim_folder(LaterTraining(**vars(old)))
    assert json.loads(record.read_text()) == json.loads(before) | {"glow": 0.25, "hues": []}
    monkeypatch.setattr(reid_snapshot, "ReidTraining", ReidTraining)
    with pytest.raises(InputError, match=r"with --glow 0\.25, which this program does not have: give another --out"):
        reid_snapshot.claim_folder(old)


# ---- sweeps


def sweep_of(training: ReidTraining, **arms: ReidTraining) -> sweeps.Sweep:
    data = DataSet(
        name="market", train=(), query=(), gallery=(), toy_hash=None, test_paths=(), fingerprints={"train": "f"},
        train_images=24,
    )  # fmt: skip
    run = GeneratedRun(Path("run"), {"name": "run", "plan": None}, 5, 4, 20, {}, None)
    arms = arms or {"": training}
    return sweeps.Sweep("artificial-people", Path("data"), data, (0, 2), (0, 1), arms, {sweeps.ONE_RUN: run}, (), False)


def training_of(kind: type[ReidTraining], **changes) -> ReidTraining:
    return kind(**{"data": Path("."), "out": Path("."), "batch": 8, "steps": 3} | changes)


def test_a_sweep_of_the_first_options_has_the_hash_of_then(tmp_path):
    """The literal hash that the program gave before there was a rule for later options, and the options it knew."""
    made = sweep_of(training_of(ReidTraining))
    then = dataclasses.replace(made, known=frozenset(SWEPT))
    assert then.hash == "0d70efed2528ef4a5b34da8dbcd3a858236a3e59fe33be29c683250f5e044092"
    assert list(then.configuration()["training"][""]) == SWEPT
    output = Output(str(tmp_path))
    assert sweeps.continue_sweep(output, made) == made  # a new one knows every option
    output.write("sweep.json", then.to_json("command"))
    assert sweeps.continue_sweep(output, made) == then


@pytest.mark.parametrize("arms", [("",), ("a", "b")])
def test_a_sweep_goes_on_after_the_program_gained_an_option(tmp_path, monkeypatch, arms):
    output, first = Output(str(tmp_path)), arms[0]

    def made(kind: type[ReidTraining], **changes) -> sweeps.Sweep:
        """Changes are those of the last arm."""
        trainings = {arm: training_of(kind, lr=0.1 if arm == first else 0.2) for arm in arms}
        return sweep_of(trainings[first], **trainings | {arms[-1]: dataclasses.replace(trainings[arms[-1]], **changes)})

    old = made(ReidTraining)
    output.write("sweep.json", old.to_json("command"))
    monkeypatch.setattr(sweeps, "ReidTraining", LaterTraining)
    new = made(LaterTraining)
    assert new.hash != old.hash  # a new folder knows the option
    going_on = sweeps.continue_sweep(output, dataclasses.replace(new, seeds=(0, 1, 2)))
    assert (going_on.hash, going_on.seeds) == (old.hash, (0, 1, 2))
    assert dataclasses.replace(going_on, seeds=(0, 1)).to_json("command") == old.to_json("command")
    where = "" if arms == ("",) else r"training\.b\."
    for changes, message in (
        ({"glow": 0.5}, rf"another configuration: {where}glow is 0\.25, not 0\.5\. Choose"),
        ({"hues": ("red",)}, rf'another configuration: {where}hues is \[\], not \["red"\]\. Choose'),
        ({"batch": 16}, rf"another configuration: {where}batch is 8, not 16\. Choose"),
    ):
        with pytest.raises(InputError, match=message):
            sweeps.continue_sweep(output, made(LaterTraining, **changes))
    output.write("sweep.json", new.to_json("command"))
    assert sweeps.continue_sweep(output, new).hash == new.hash
    monkeypatch.setattr(sweeps, "ReidTraining", ReidTraining)  # the program loses it again
    with pytest.raises(InputError, match=r"glow is 0\.25, not null"):
        sweeps.continue_sweep(output, made(ReidTraining))


def test_another_arm_is_refused_by_all_its_options(tmp_path):
    output = Output(str(tmp_path))
    output.write("sweep.json", sweep_of(training_of(ReidTraining)).to_json("command"))
    with pytest.raises(InputError, match=r"training\.b\.batch is null, not 8; .*; batch is 8, not null"):
        sweeps.continue_sweep(output, sweep_of(None, b=training_of(ReidTraining)))


def test_files_of_a_sweep_are_known_by_their_contents(tmp_path):
    output, weights = Output(str(tmp_path)), tmp_path / "weights"
    weights.write_bytes(b"w")
    with_file = sweep_of(training_of(ReidTraining, weights=weights))
    without = sweep_of(training_of(ReidTraining))
    for first, other, message in (
        (without, with_file, r"configuration: weights is null, not \"50e721e49c01\.\.\.\"\. Choose"),
        (with_file, without, r"configuration: weights is \"50e721e49c01\.\.\.\", not null\. Choose"),
    ):
        output.write("sweep.json", first.to_json("command"))
        assert sweeps.continue_sweep(output, first).hash == first.hash
        with pytest.raises(InputError, match=message):
            sweeps.continue_sweep(output, other)


# ---- exports


def test_an_export_goes_on_after_the_program_gained_an_option(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Later(ExportOptions):
        glow: float = 0.25

    output, about = Output(str(tmp_path)), ("plan", "manifest.parquet", "sha256")
    for kind in (ExportOptions, Later):
        record = export_record.Record(kind("table"), *about)
        content = dataclasses.asdict(record)
        output.write("export.json", json.dumps(content).encode())
        assert export_record.holds_export(output, record)
    with pytest.raises(InputError, match=r"glow is 0\.25, which this program does not have\. Choose"):
        export_record.holds_export(output, export_record.Record(ExportOptions("table"), *about))
    content["options"].pop("glow")
    output.write("export.json", json.dumps(content).encode())
    assert export_record.holds_export(output, export_record.Record(Later("table"), *about))
    with pytest.raises(InputError, match=r"cameras is 1, not 6; glow is 0\.25, not 0\.5\. Choose"):
        export_record.holds_export(output, export_record.Record(Later("table", cameras=6, glow=0.5), *about))
