"""Files of fast-reid, BoT and TransReID, against what these programs compute (tests/data/foreign_reid.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from passersby.errors import InputError
from passersby.reid.checkpoint import load_imagenet, load_reid, save_reid
from passersby.reid.layers import NonLocal
from passersby.reid.network import IMAGENET_MEAN, ReidConfig, ReidNetwork
from tests.helpers import foreign_reid_files as files

ORACLE = Path(__file__).parents[2] / "data" / "foreign_reid.npz"
SMALL = "bot_resnet18_without_neck"


def written(path, state, **more):
    torch.save({"model": state} | more if more else state, path)
    return path


# A network of each structure: the others of NETWORKS were compared once, all within 1e-6 of the largest value.
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("fastreid_sbs_ibn", ("fastreid", "resnet50_ibn_a", "fastreid", "gem", True, 384)),
        ("fastreid_bot", ("fastreid", "resnet50", "fastreid", "average", False, 256)),
        ("bot_resnet50", ("bot", "resnet50", "bot", "average", False, 256)),
        (SMALL, ("bot", "resnet18", "bot", "average", False, 256)),
        ("transreid_deit_small", ("transreid", "timm:vit_small_patch16_224", "imagenet", "average", False, 256)),
    ],
)
@torch.inference_mode()
def test_features_are_those_of_the_program(key, expected, tmp_path):
    more = {"iteration": 3} if key.startswith("fastreid") else {}
    loaded = load_reid(written(tmp_path / "model.pth", files.state(key), **more))
    config = loaded.network.config
    assert (loaded.kind, config.backbone, config.stem, config.pooling, config.non_local, config.height) == expected
    assert (config.width, config.classes, config.last_stride) == (128, files.CLASSES, 1)
    (note,) = loaded.notes
    assert "the file does not say it" in note
    feature = loaded.network.feature(files.images(256 if key in files.VITS else 64))
    # Values of about 30, which other processors add up in another order.
    torch.testing.assert_close(feature[:, ::16], torch.from_numpy(np.load(ORACLE)[key]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_a_vit_before_and_after_its_batch_normalisation(tmp_path):
    path = written(tmp_path / "model.pth", files.state("transreid_deit_small"))
    loaded, images = load_reid(path, neck_feature="after"), files.images(256)
    golden = torch.from_numpy(np.load(ORACLE)["transreid_deit_small_after"])
    torch.testing.assert_close(loaded.network.feature(images)[:, ::16], golden, rtol=1e-4, atol=1e-4)
    assert loaded.network.config.mean == (0.5, 0.5, 0.5)
    # Saved as ours, with everything that the other program's file does not say, and for images of another size.
    save_reid(tmp_path / "a.safetensors", loaded.network, class_names=list("abcdefg"), record={})
    again = load_reid(tmp_path / "a.safetensors")
    assert again.network.config == loaded.network.config
    assert torch.equal(again.network.feature(images), loaded.network.feature(images))
    wide = load_reid(tmp_path / "a.safetensors", height=384)
    assert wide.features(np.zeros((1, 384, 128, 3), np.uint8)).shape == (1, 384)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"base.sie_embed": (6, 1, 384)}, r"embeddings of cameras or views \(SIE\)"),
        ({"b1.0.norm1.weight": (384,)}, r"local branches \(JPM\)"),
        ({"base.pos_embed": (1, 211, 384)}, "210 patches: those of overlapping patches"),
        ({"base.pos_embed": (384,)}, "timm has the structures"),
        ({"base.blocks.0.mlp.fc1.weight": (96, 384)}, r"\(384, 12, 96\)"),
        ({"base.blocks.0.attn.qkv.weight": (96, 384)}, "tensor backbone.blocks.0.attn.qkv.weight has shape"),
    ],
)
def test_a_vit_that_timm_does_not_have_is_one_line(change, problem, tmp_path):
    shapes = files.transreid("transreid_deit_small") | change
    path = written(tmp_path / "model.pth", {name: torch.zeros(shape) for name, shape in shapes.items()})
    with pytest.raises(InputError, match=problem) as caught:
        load_reid(path)
    assert "\n" not in str(caught.value)


def test_older_names_and_other_pixels_of_fast_reid(tmp_path):
    state = {name: torch.zeros(shape) for name, shape in files.fastreid("fastreid_bot").items()}
    old = {
        name.replace("heads.bottleneck.0.", "heads.bnneck.").replace("heads.weight", "heads.classifier.weight"): value
        for name, value in state.items()
    }
    old |= {"pixel_mean": torch.full((1, 3, 1, 1), 127.5), "pixel_std": torch.full((1, 3, 1, 1), 127.5)}
    loaded = load_reid(written(tmp_path / "model.pth", old))
    assert (loaded.network.config.mean, loaded.network.config.deviation) == ((0.5,) * 3,) * 2
    assert load_reid(written(tmp_path / "model.pth", state)).network.config.mean == IMAGENET_MEAN
    state["heads.bottleneck.0.weight"] = torch.zeros(64, 2048, 1, 1)
    with pytest.raises(InputError, match=r"EMBEDDING_DIM"):
        load_reid(written(tmp_path / "model.pth", state))


def test_the_feature_of_another_neck_is_refused(tmp_path):
    path = written(tmp_path / "model.pth", files.state(SMALL))
    with pytest.raises(InputError, match="its neck is none, no bnneck"):
        load_reid(path, neck_feature="before")


def test_a_new_non_local_block_adds_nothing_and_learns():
    block, x = NonLocal(8, torch.nn.BatchNorm2d), torch.rand(2, 8, 4, 2)
    torch.testing.assert_close(block(x), x)
    block(x).square().sum().backward()
    assert block.W[1].weight.grad.abs().sum() > 0


def test_imagenet_weights_of_ibn_net(tmp_path):
    state = {name.removeprefix("base."): value for name, value in files.state("bot_resnet50_ibn_a").items()}
    state = {name: value for name, value in state.items() if not name.startswith(("bottleneck.", "classifier."))}
    torch.save(state, tmp_path / "ibn.pth")
    made = ReidNetwork(ReidConfig(3, "resnet50_ibn_a", domains=2, pooling="gem", non_local=True))
    load_imagenet(made, tmp_path / "ibn.pth")
    filled = made.backbone.state_dict()
    assert torch.equal(filled["layer1.0.bn1.IN.weight"], state["layer1.0.bn1.IN.weight"])
    assert torch.equal(filled["layer2.1.bn1.BN.norms.1.bias"], state["layer2.1.bn1.BN.bias"])
    with pytest.raises(InputError, match="IBN-Net's releases"):
        load_imagenet(made)
