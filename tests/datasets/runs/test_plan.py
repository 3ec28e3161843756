"""The plan: fixed units, frozen configuration, extension, refusals."""

import dataclasses
import hashlib
import json
import struct
import time

import pytest

from datasets.runs.configuration import RECIPE, Origin
from datasets.runs.plan import PLAN_FILE, Configuration, Plan, continue_plan, layer_groups, parse_layers, read_plan
from datasets.runs.rows import planned_columns
from datasets.runs.run import Run
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.files import file_sha256

ORIGINS = (Origin("0002", "a/1.jpg", 3, 4), Origin("0007", "a/2.jpg", None, 1), Origin("Zo\u00eb", "b.jpg", 1, 2))


def configuration(**changes) -> Configuration:
    values = {
        "seed": 7,
        "variants": 51,
        "method": "mix",
        "layers": tuple(range(5, 12)),
        "amount": None,
        "truncation_psi": 0.7,
        "network": "a" * 64,
        "height": 128,
        "width": 64,
        "format": "jpeg",
        "jpeg_quality": 95,
        "unit_images": 512,
        "detector": "b" * 64,
        "reference_threshold": 0.6,
        "ssim_data_range": 4095.0,
    }
    return Configuration(**(values | changes))


class FinishedRun(Run):
    """A run whose shards need not lie anywhere."""

    units: set[int]

    def finished(self) -> set[int]:
        return self.units


def pending(plan: Plan, finished) -> list:
    run = FinishedRun(Output("nowhere"), plan)
    run.units = set(finished)
    return run.pending


@pytest.mark.parametrize("people", [1, 3, 24, 100, 1001])
def test_every_person_is_in_one_unit(people):
    plan = Plan(configuration()).extended(people)
    units = list(plan.units())
    found = [p for unit in units for p in range(unit.first_person, unit.first_person + unit.people)]
    assert found == list(range(people))
    assert [unit.unit for unit in units] == list(range(plan.unit_count))
    assert max(unit.people for unit in units) * 51 <= 512
    assert plan.images == people * 51


def test_small_runs_are_cut_finely_and_large_images_too():
    assert Plan(configuration(variants=16)).extended(24).unit_count == 24
    large = Plan(configuration(variants=2, height=1024, width=512)).extended(1000)  # 1.6 MB an image
    assert max(unit.people for unit in large.units()) * 2 * 1024 * 512 * 3 <= 16_000_000
    more_than_a_unit = Plan(configuration(variants=2000)).extended(40)
    assert more_than_a_unit.unit_count == 40  # a person is never divided


def test_more_people_extend_and_leave_the_units_as_they_are():
    first = Plan(configuration()).extended(24)
    second = first.extended(1000)
    assert list(second.units())[: first.unit_count] == list(first.units())
    assert second.people == 1000
    assert second.configuration.hash == first.configuration.hash
    assert second.extended(500) == second
    assert [unit.unit for unit in pending(second, range(10, second.unit_count))] == list(range(10))


def test_mix_seeds_are_the_documented_hash():
    c = configuration(seed=11)
    expected = hashlib.sha256(struct.pack("<QQQ", 11, 5, 3)).digest()
    assert c.mix_seed(5, 3) == int.from_bytes(expected[:4], "little")
    seeds = {c.mix_seed(person, variant) for person in range(20) for variant in range(1, 20)}
    assert len(seeds) == 20 * 19
    assert max(seeds) < 2**32
    assert c.person_seed(5) == 16


def test_plan_survives_its_file(tmp_path):
    output = Output(str(tmp_path / "run"))
    assert read_plan(output) is None
    plan = Plan(configuration(method="interpolate", amount=0.25)).extended(24).extended(60)
    output.write(PLAN_FILE, plan.to_json())
    assert read_plan(output) == plan


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"hash": 1, "configuration": {}, "extents": []}', b"\xff"])
def test_a_foreign_plan_file_is_refused(tmp_path, text):
    (tmp_path / PLAN_FILE).write_bytes(text)
    with pytest.raises(InputError, match=r"plan\.json is not a plan"):
        read_plan(Output(str(tmp_path)))


def test_an_edited_plan_is_refused(tmp_path):
    content = json.loads(Plan(configuration()).extended(24).to_json())
    content["configuration"]["seed"] = 8
    (tmp_path / PLAN_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match="was edited"):
        read_plan(Output(str(tmp_path)))


def test_another_configuration_is_refused_naming_the_keys():
    old = Plan(configuration()).extended(24)
    with pytest.raises(InputError) as caught:
        continue_plan(old, configuration(seed=8, truncation_psi=1.0, network="c" * 64), 24)
    message = str(caught.value)
    assert "seed is 7, not 8" in message
    assert "truncation_psi is 0.7, not 1.0" in message
    assert "network is " in message
    assert "variants" not in message


def test_another_detector_threshold_keeps_the_references():
    old = Plan(configuration(reference_threshold=0.6)).extended(24)
    assert continue_plan(old, configuration(reference_threshold=0.9), 24) == old


def test_twenty_thousand_units_are_small_and_quick():
    start = time.perf_counter()
    plan = Plan(configuration(variants=50)).extended(200_000)
    missing = pending(plan, range(plan.unit_count - 3))
    assert plan.unit_count == 20_000
    assert len(missing) == 3
    assert len(plan.to_json()) < 2000
    assert time.perf_counter() - start < 2  # 0.05 s on an idle core


@pytest.mark.parametrize(
    ("num_ws", "coarse", "middle", "fine"),
    [
        (16, (0, 5), (5, 11), (12, 15)),  # StyleGAN3: the study's
        (10, (0, 3), (3, 7), (8, 9)),  # StyleGAN2 of height 64
        (12, (0, 4), (4, 8), (9, 11)),  # of height 128
        (18, (0, 6), (6, 12), (13, 17)),  # of height 1024
        (4, (0, 1), (1, 2), (3, 3)),
    ],
)
def test_layer_groups_come_from_the_networks_style_inputs(num_ws, coarse, middle, fine):
    groups = layer_groups(num_ws)
    assert groups == {"coarse": coarse, "middle": middle, "fine": fine, "all": (0, num_ws - 1)}
    assert parse_layers("middle", num_ws) == tuple(range(middle[0], middle[1] + 1))
    assert parse_layers(f"0,{num_ws - 1}", num_ws) == (0, num_ws - 1)
    with pytest.raises(InputError, match=f"{num_ws} is not within the w indices 0 to {num_ws - 1}"):
        parse_layers(f"{num_ws}", num_ws)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("coarse", range(6)),
        ("middle", range(5, 12)),
        ("fine", range(12, 16)),
        ("all", range(16)),
        ("3, 5-8,5", [3, 5, 6, 7, 8]),
        ("15", [15]),
    ],
)
def test_layers(text, layers):
    assert parse_layers(text) == tuple(layers)


@pytest.mark.parametrize("text", ["", "17", "16", "3-", "8-5", "middel", "-1", "1,,2", "0-16", "1.5"])
def test_bad_layers_are_refused(text):
    with pytest.raises(InputError, match="--layers"):
        parse_layers(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("variants", 0),
        ("variants", -2),
        ("variants", 10**9),
        ("truncation_psi", float("nan")),
        ("truncation_psi", float("inf")),
        ("amount", 0.0),
        ("amount", float("nan")),
        ("amount", 2.0),
        ("height", 0),
        ("height", 10**6),
        ("width", -64),
        ("jpeg_quality", 400),
        ("jpeg_quality", 0),
        ("unit_images", 0),
        ("ssim_data_range", 0.0),
        ("ssim_data_range", float("inf")),
        ("reference_threshold", 1.5),
    ],
)
def test_absurd_numbers_are_refused_by_name_and_value(key, value):
    option = {"reference_threshold": "detector-threshold"}.get(key, key.replace("_", "-"))
    with pytest.raises(InputError) as caught:
        configuration(**{key: value})
    assert f"--{option} {value}" in str(caught.value)


@pytest.mark.parametrize("people", [0, -3, 10**12, 2**32, 20_000_000])
def test_absurd_people_are_refused(people):
    with pytest.raises(InputError, match=f"--people {people}:"):
        Plan(configuration()).extended(people)


def test_the_hash_covers_every_key():
    base = configuration()
    others = {
        "seed": 8, "variants": 50, "method": "interpolate", "layers": (1,), "amount": 0.5, "truncation_psi": 1.0,
        "network": "x", "height": 64, "width": 32, "format": "png", "jpeg_quality": None, "unit_images": 100,
        "detector": "y", "reference_threshold": 0.5, "ssim_data_range": 255.0, "recipe": 2,
        "detector_setup": "onnx",
    }  # fmt: skip
    together = {"latents": {"latents": "t" * 64, "origins": ORIGINS}, "identity": {"identity": "i" * 64}}
    together["origins"] = {"latents": "t" * 64, "origins": ORIGINS[:2]}
    together["partners"] = together["latents"] | {"partners": "people"}
    together["real"] = together["identity"] | {"real": "r" * 64}
    together["cameras"] = {"method": "camera", "layers": (), "cameras": (1, 2)}
    assert others.keys() | together.keys() == {field.name for field in dataclasses.fields(base)}
    changes = [{key: value} for key, value in others.items()] + list(together.values())
    hashes = {dataclasses.replace(base, **change).hash for change in changes} | {base.hash}
    assert len(hashes) == len(changes) + 1


@pytest.mark.parametrize("recipe", range(1, RECIPE + 1))
def test_a_folder_keeps_the_recipe_that_it_was_begun_with(recipe, tmp_path):
    output = Output(str(tmp_path))
    begun = Plan(configuration(recipe=recipe)).extended(5)
    output.write(PLAN_FILE, begun.to_json())
    for people in (5, 9):
        gone_on = continue_plan(read_plan(output), configuration(recipe=RECIPE), people)
        assert gone_on.configuration == begun.configuration
        assert gone_on.hash == begun.hash
    assert continue_plan(None, configuration(recipe=RECIPE), 5).configuration.recipe == RECIPE
    with pytest.raises(InputError, match="seed is 7, not 8"):
        continue_plan(read_plan(output), configuration(recipe=RECIPE, seed=8), 5)


@pytest.mark.parametrize("recipe", [0, RECIPE + 1, None, "1"])
def test_a_recipe_of_a_later_version_is_refused_in_one_line(recipe, tmp_path):
    output = Output(str(tmp_path))
    text = (
        Plan(configuration()).extended(5).to_json().replace(b'"recipe": 1', f'"recipe": {json.dumps(recipe)}'.encode())
    )
    output.write(PLAN_FILE, text)
    with pytest.raises(InputError, match=f"recipe {recipe}: must be 1 or 2 or 3 or 4; a later version began") as error:
        read_plan(output)
    assert "\n" not in str(error.value)


def test_the_method_camera_mixes_no_layers_and_is_read_back(tmp_path):
    c = configuration(method="camera", layers=(), cameras=(2, 5, 3), variants=200)
    plan, output = Plan(c).extended(3), Output(str(tmp_path))
    output.write(PLAN_FILE, plan.to_json())
    assert read_plan(output) == plan
    columns = planned_columns(c, 1)
    assert columns["mix_layers"] == [None] * 200
    assert columns["method"] == ["camera"] * 200
    assert columns["amount"] == [None] * 200
    assert columns["mix_seed"] == [None, *(c.mix_seed(1, variant) for variant in range(1, 200))]
    digest = hashlib.sha256(struct.pack("<QQQ", 7, 1, 4)).digest()
    assert columns["camera"][4] == (2, 5, 3)[int.from_bytes(digest[4:8], "little") % 3]
    assert min(columns["camera"].count(camera) for camera in (2, 5, 3)) > 40  # 200 / 3, 4 standard deviations
    assert planned_columns(dataclasses.replace(c, cameras=()), 1)["camera"] == [None] * 200
    assert "cameras" not in dataclasses.replace(c, cameras=()).values()  # as plans were before cameras
    real = planned_columns(dataclasses.replace(c, latents="t", origins=ORIGINS), 0)
    assert real["camera"] == [3, *planned_columns(c, 0)["camera"][1:]]  # the base is the origin's own picture
    assert real["truncation_psi"] == [None] + [c.truncation_psi] * 199


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "camera"}, "--method camera with layers"),
        ({"method": "mix", "layers": ()}, "--method mix with layers"),
        ({"method": "mix", "cameras": (1, 2)}, "--method mix with labels of cameras"),
        (
            {"method": "camera", "layers": (), "latents": "t", "origins": ORIGINS, "partners": "people"},
            "--partners people: --method camera takes no styles",
        ),
    ],
)
def test_methods_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        configuration(**changes)


def test_plans_of_before_real_people_are_read_and_written_as_they_were(tmp_path):
    """The literal file that the program wrote before it knew latents and identities."""
    old = b"""{
  "hash": "45cde0a2e53ab4e0079aed5072cd4a7d93cf3dcf9b43c572d18ff4699d617beb",
  "configuration": {
    "seed": 7,
    "variants": 51,
    "method": "mix",
    "layers": [
      5,
      6,
      7,
      8,
      9,
      10,
      11
    ],
    "amount": null,
    "truncation_psi": 0.7,
    "network": "%s",
    "height": 128,
    "width": 64,
    "format": "jpeg",
    "jpeg_quality": 95,
    "unit_images": 512,
    "detector": "%s",
    "reference_threshold": 0.6,
    "ssim_data_range": 4095.0,
    "recipe": 1
  },
  "people": 24,
  "images": 1224,
  "units": 24,
  "extents": [
    {
      "first_unit": 0,
      "first_person": 0,
      "people": 24,
      "people_per_unit": 1
    }
  ]
}
""" % (b"a" * 64, b"b" * 64)
    output = Output(str(tmp_path))
    output.write(PLAN_FILE, old)
    plan = read_plan(output)
    assert plan.to_json() == old
    assert plan == continue_plan(plan, configuration(), 24)
    assert (plan.configuration.latents, plan.configuration.origins, plan.configuration.identity) == (None, (), None)


def real(**changes) -> Configuration:
    return configuration(latents="t" * 64, origins=ORIGINS, **changes)


def test_a_plan_of_real_people_knows_their_names_and_how_many_there_are(tmp_path):
    output = Output(str(tmp_path))
    plan = Plan(real()).extended(2)
    output.write(PLAN_FILE, plan.to_json())
    assert read_plan(output) == plan
    assert [origin.name for origin in read_plan(output).configuration.origins] == ["0002", "0007", "Zo\u00eb"]
    assert plan.extended(3).people == 3
    with pytest.raises(InputError, match="--people 4: --latents has 3 people"):
        plan.extended(4)
    assert Plan(real(seed=2**32 - 1)).extended(3).people == 3  # they have no seeds
    assert "origins" not in plan.configuration.settings()
    assert plan.configuration.settings()["latents"] == "t" * 64


def test_other_latents_in_an_old_folder_are_refused_by_their_hash():
    old = Plan(real()).extended(2)
    with pytest.raises(InputError) as caught:
        continue_plan(old, dataclasses.replace(real(), latents="u" * 64, origins=ORIGINS[:1]), 1)
    assert 'latents is "tttttttttttt..."' in str(caught.value)
    assert "origins" not in str(caught.value)
    with pytest.raises(InputError, match="latents is null, not"):
        continue_plan(Plan(configuration()).extended(2), real(), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partners": "people"}, "--partners people: they are real people's, give them with --latents"),
        ({"latents": "t", "origins": (), "partners": "random"}, "--latents"),
        ({"latents": "t", "partners": "friends"}, "--partners friends: must be random or people or pictures"),
        ({"latents": "t", "partners": "pictures"}, "--partners pictures: it belongs to --method interpolate"),
        ({"latents": "t", "truncation_psi": None}, "--truncation-psi None"),
        ({"truncation_psi": None}, "--truncation-psi None"),
    ],
)
def test_partners_that_cannot_be_are_refused(changes, message):
    origins = {"origins": ORIGINS} if "latents" in changes else {}
    with pytest.raises(InputError) as caught:
        configuration(**(origins | changes))
    assert message in str(caught.value)


def test_file_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a", "--network") == hashlib.sha256(b"abc").hexdigest()
    for bad in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="--network"):
            file_sha256(bad, "--network")
