"""The preview sheet, made by a tiny network with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.runs.card import write_card
from datasets.runs.plan import parse_layers
from jobs.preview import Preview, check, draw, main
from passersby import stylegan2
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.stylegan3 import Generator, GeneratorConfig, load_network, save_network, to_uint8


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig.config_t(32, 16, channel_base=512, channel_max=16)).eval()
    path = tmp_path_factory.mktemp("network") / "tiny.safetensors"
    save_network(path, generator, record={"data": "toy crowd"})
    return path


def options(network, tmp_path, **changes) -> Preview:
    settings = {"people": 2, "variants": 2, "seed": 7, "height": 32, "width": 16}
    return Preview(network=network, out=tmp_path / "sheet.png", **(settings | changes))


def test_the_pictures_are_those_of_the_seeds_and_layers(network, tmp_path):
    chosen = options(network, tmp_path, groups=("fine", "3,5-8"))
    loaded = load_network(network)
    base, (fine, own) = draw(chosen, loaded, list(check(chosen).values()))
    z = np.random.RandomState(8).randn(1, 512)  # noqa: NPY002 - the reference tools' seeds
    with torch.no_grad():
        image = to_uint8(loaded.generator(torch.from_numpy(z), truncation_psi=chosen.truncation_psi))[0].numpy()
    # Another batch size rounds otherwise, and truncation to bytes makes that 1 in 255 at most.
    assert np.abs(base[1].astype(int) - image).max() <= 1
    assert np.asarray(fine).shape == np.asarray(own).shape == (2, 2, 32, 16, 3)
    for group in (fine, own):
        assert all((picture != base[person]).any() for person in range(2) for picture in group[person])
    assert (fine[0][0] != own[0][0]).any()


def test_main_saves_a_sheet_that_says_it_is_a_toy(network, tmp_path, capsys):
    main(options(network, tmp_path))
    assert capsys.readouterr().out.strip() == str(tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    # 1 base and 3 groups of 2, each 64 pixels wide (32 x 16 shown four times as large); 2 people
    assert sheet.shape[1] > 7 * 64
    assert sheet.shape[0] > 2 * 128


def test_headings_name_the_indices():
    groups = check(Preview(network=Path("x"), groups=("coarse", "middle", "fine", "3,5-8")))
    assert list(groups) == ["coarse 0-5", "middle 5-11", "fine 12-15", "layers 3,5-8"]
    assert groups["layers 3,5-8"] == parse_layers("3,5-8") == (3, 5, 6, 7, 8)


def test_the_layers_of_the_pose_are_those_of_the_networks_card(tmp_path, capsys):
    network = tmp_path / "net.safetensors"
    network.write_bytes(b"weights")
    write_card(network, {"sha256": file_sha256(network)}, {"layers": {"pose": [0, 1, 2]}})
    assert check(Preview(network=network, groups=("pose", "fine"))) == {
        "pose 0-2": (0, 1, 2), "fine 12-15": (12, 13, 14, 15),
    }  # fmt: skip
    assert capsys.readouterr().err == "layers 0-2 move the pose of this network, says net.card.json\n"
    with pytest.raises(InputError, match="--groups 'hair'"):
        check(Preview(network=network, groups=("pose", "hair")))
    assert capsys.readouterr().err == ""  # bad input is one line


def test_a_network_of_identity_pairs_also_shows_other_cameras(tmp_path, capsys):
    torch.manual_seed(0)
    config = stylegan2.GeneratorConfig(32, 16, mapping_layers=2, channel_base=512, channel_max=16)
    path = tmp_path / "pairs.safetensors"
    save_network(path, stylegan2.Generator(config).eval(), record={"z": {"who": [0, 256], "how": [256, 512]}})
    chosen, loaded = options(path, tmp_path, groups=None), load_network(path)
    groups = check(chosen, loaded.generator.num_ws, loaded.has_who)
    assert list(groups) == ["other cameras", "coarse 0-2", "middle 2-6", "fine 7"]
    base, (seen, *_) = draw(chosen, loaded, list(groups.values()))
    assert "1 of 4: other cameras" in capsys.readouterr().err
    # Variant v keeps who, and takes the how of the code that the other groups take layers from.
    z = np.random.RandomState(7).randn(1, 512)  # noqa: NPY002 - the reference tools' seeds
    with torch.no_grad():
        image = to_uint8(loaded.generator(torch.from_numpy(z), truncation_psi=0.7))[0].numpy()
    assert np.abs(base[0].astype(int) - image).max() <= 1
    assert (seen[0][0] != base[0]).any()
    main(chosen)
    with pytest.raises(InputError, match="--groups camera: the record of x names no half of its codes that says who"):
        check(Preview(network=Path("x"), groups=("camera",)))


def test_a_stylegan2_is_drawn_with_the_groups_of_its_style_inputs(tmp_path, capsys):
    torch.manual_seed(0)
    config = stylegan2.GeneratorConfig(32, 16, mapping_layers=2, channel_base=512, channel_max=16)
    path = tmp_path / "second.safetensors"
    save_network(path, stylegan2.Generator(config).eval(), record={})
    main(options(path, tmp_path, people=1, variants=1))
    assert Image.open(tmp_path / "sheet.png").size[0] > 4 * 64
    with pytest.raises(InputError, match="8 is not within the w indices 0 to 7"):
        main(options(path, tmp_path, groups=("8",)))
    assert list(check(Preview(network=path), 8)) == ["coarse 0-2", "middle 2-6", "fine 7"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": 0}, "--people 0"),
        ({"variants": -3}, "--variants -3"),
        ({"people": 10**9}, "pictures on one sheet"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**32 - 1}, "--seed 4294967295"),
        ({"groups": ("middle", "hair")}, "--groups 'hair'"),
        ({"groups": ("12-16",)}, "12-16 is not within"),
        ({"groups": ()}, "--groups"),
        ({"height": 0}, "--height 0"),
        ({"truncation_psi": float("nan")}, "--truncation-psi nan"),
        ({"out": Path("sheet.jpg")}, "sheet.jpg"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(InputError) as caught:
        check(Preview(network=Path("x"), **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_no_reason_to_go_on_silently():
    with pytest.raises(InputError, match="--device cuda"):
        check(Preview(network=Path("x"), device="cuda"))


def test_the_command_ends_with_code_2_and_one_line(call, tmp_path):
    code, _, wrong = call("preview", "--network", tmp_path / "absent.pkl", "--people", 1)
    assert code == 2
    (line,) = wrong.strip().splitlines()
    assert line.startswith("error: ")
    assert "absent.pkl" in line
