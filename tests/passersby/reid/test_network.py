"""passersby/reid/network.py against torchvision's networks with the necks written out plainly here."""

import math
import os
import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.transforms.v2.functional import normalize

from jobs.common import CPU_VARIABLES
from passersby.devices import exact_numbers
from passersby.errors import InputError
from passersby.reid.layers import DomainBatchNorm
from passersby.reid.network import BACKBONES, NECKS, FeatureNetwork, ReidConfig, ReidNetwork
from tests.helpers.gpu_path import float_rules

CLASSES = 5


def network(seed: int = 0, **settings) -> ReidNetwork:
    """A small one, in eval mode, whose batch normalisations are none that leave values as they are."""
    torch.manual_seed(seed)
    settings = {"backbone": "resnet10", "height": 64, "width": 32, "embedding": 16} | settings
    made = ReidNetwork(ReidConfig(CLASSES, **settings))
    for module in made.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
    return made.eval()


def images(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 64, 32, generator=torch.Generator().manual_seed(seed))


def pooled_of(made: ReidNetwork, x: torch.Tensor, name: str, last_stride: int) -> torch.Tensor:
    """torchvision's own network with the same weights, up to its average pool."""
    theirs = getattr(torchvision.models, name)(num_classes=1)
    theirs.load_state_dict(made.backbone.state_dict(), strict=False)
    theirs.fc = nn.Identity()
    if last_stride == 1:
        for layer in theirs.layer4.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
    return theirs.eval()(normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.mark.parametrize(
    ("backbone", "neck", "last_stride", "activation"),
    [
        ("resnet50", "embedding", 1, "relu"),
        ("resnet18", "embedding", 2, "none"),
        ("resnet18", "bnneck", 1, "relu"),
        ("resnet34", "none", 2, "relu"),
    ],
)
@torch.inference_mode()
def test_network_is_torchvisions_with_a_neck(backbone, neck, last_stride, activation):
    made = network(backbone=backbone, neck=neck, last_stride=last_stride, activation=activation)
    state = {name: value for name, value in made.state_dict().items() if not name.startswith("backbone.")}
    pooled = pooled_of(made, images(), backbone, last_stride)

    def normalised(x):
        scaled = (x - state["norm.running_mean"]) / torch.sqrt(state["norm.running_var"] + 1e-5)
        return scaled * state["norm.weight"] + state["norm.bias"]

    if neck == "embedding":
        feature = normalised(pooled @ state["embed.weight"].T + state["embed.bias"])
        feature = feature.clamp(min=0) if activation == "relu" else feature
        embedding = feature
    else:
        embedding, feature = pooled, normalised(pooled) if neck == "bnneck" else pooled
    logits = feature @ state["classifier.weight"].T + state.get("classifier.bias", torch.zeros(CLASSES))
    outputs = made(images())
    torch.testing.assert_close(outputs.embedding, embedding)
    torch.testing.assert_close(outputs.logits, logits)
    torch.testing.assert_close(made.feature(images()), feature)
    assert feature.shape == (3, made.config.feature_width)


@pytest.mark.parametrize("neck", NECKS)
def test_classifier_sees_dropout_of_the_embedding_alone(neck):
    made = network(neck=neck, dropout=0.9)
    made.dropout.train()  # and nothing else, so that batch normalisation does not change
    first, second = made(images()), made(images())
    assert torch.equal(first.embedding, second.embedding)
    assert torch.equal(first.logits, second.logits) == (neck != "embedding")


@pytest.mark.parametrize(("stem", "last_stride", "size"), [("imagenet", 2, 2), ("imagenet", 1, 4), ("small", 2, 4)])
def test_sizes_of_the_last_stage(stem, last_stride, size):
    made, seen = network(stem=stem, last_stride=last_stride), []
    made.backbone.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    made.feature(images())
    assert seen == [(3, 512, size, size // 2)]


def test_domains_have_batch_normalisation_of_their_own():
    made = network(domains=2, neck="bnneck")
    before = {name: value.clone() for name, value in made.state_dict().items()}
    torch.testing.assert_close(made(images(), 1).logits, made(images(), 1).logits)
    made.train()
    made(images(8), 1).logits.logsumexp(1).sum().backward()
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    layers = [module for module in made.modules() if isinstance(module, DomainBatchNorm)]
    assert len(layers) == 13  # a stem's, two in each of four blocks, three beside strided ones, the neck's
    assert len(changed) == 3 * len(layers)  # mean, variance and counter
    assert all(".norms.1." in name for name in changed)
    for layer in layers:
        assert layer.norms[0].weight.grad is None
        assert layer.norms[1].weight.grad is not None


def test_features_are_those_of_real_images_whatever_came_before():
    made, plain = network(domains=2), network(domains=1)
    state = {name.replace(".norms.0.", "."): value for name, value in made.state_dict().items()}
    plain.load_state_dict({name: value for name, value in state.items() if ".norms.1." not in name})
    made(images(), 1)
    torch.testing.assert_close(made.feature(images()), plain.feature(images()))
    assert not torch.allclose(made(images(), 1).embedding, plain.feature(images()))


def test_domain_that_is_not_there():
    with pytest.raises(ValueError, match="domain 1: the network was built for 1"):
        network()(images(), 1)


def test_neck_without_shift_stays_without():
    made = network(neck="bnneck", domains=2).train()
    step = torch.optim.SGD(made.parameters(), 0.1, weight_decay=0.1)
    made(images(), 1).logits.logsumexp(1).sum().backward()
    step.step()
    assert all(not norm.bias.any() for norm in made.norm.norms)
    assert made.classifier.bias is None


@pytest.mark.parametrize("neck", NECKS)
def test_parameters_are_backbone_or_head(neck):
    made = network(neck=neck, domains=2)
    backbone, head = ({id(p) for p in part} for part in (made.backbone_parameters(), made.head_parameters()))
    assert not backbone & head
    assert backbone | head == {id(p) for p in made.parameters()}
    assert id(made.classifier.weight) in head
    assert id(made.backbone.conv1.weight) in backbone


def test_initial_weights():
    # The spread of n numbers is known to about 1/sqrt(2n) of itself: 1% here, so 5% is five of those.
    made = ReidNetwork(ReidConfig(100, "resnet10"))
    for weight, spread in ((made.embed.weight, math.sqrt(2 / 512)), (made.classifier.weight, 0.001)):
        assert weight.std().item() == pytest.approx(spread, rel=0.05)
    assert ReidNetwork(ReidConfig(100, "resnet10", "none")).classifier.weight.std().item() == pytest.approx(0.01, 0.05)


def test_channels_last_and_short_floats():
    made = network()
    expected = made(images())
    last = network().to(memory_format=torch.channels_last)
    found = last(images().to(memory_format=torch.channels_last))
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        short = made(images())
    assert short.logits.dtype == short.embedding.dtype == torch.float32
    assert functional.cosine_similarity(short.embedding, expected.embedding).min() > 0.99  # bfloat16 has 8 bits


def test_bfloat16_of_small_maps_is_right_with_the_variables_of_the_jobs():
    # Without them processors with AMX compute this convolution wrong.
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == CPU_VARIABLES["ONEDNN_MAX_CPU_ISA"]
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 256, 4, 2, generator=random).bfloat16()
    weight = (torch.randn(512, 256, 3, 3, generator=random) / 48).bfloat16()
    found = functional.conv2d(x, weight, stride=2, padding=1)
    expected = functional.conv2d(x.double(), weight.double(), stride=2, padding=1)
    assert ((found.double() - expected).norm() / expected.norm()).item() < 0.004  # 8 bits


@torch.inference_mode()
def test_flip_averaged():
    made = network()
    mirrored = torch.from_numpy(images().numpy()[..., ::-1].copy())
    total = (made.feature(images()) + made.feature(mirrored)).double()
    expected = total / total.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(made.flip_averaged(images()).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.flip_averaged(mirrored), made.flip_averaged(images()))


def test_feature_network_of_bytes():
    made = network(neck="bnneck").train()
    extractor = pickle.loads(pickle.dumps(FeatureNetwork(made, "abc", "cpu")))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 32, 3), np.uint8)  # more than a batch of 32
    features = extractor(pixels)
    assert (extractor.width, extractor.height, extractor.width_pixels, extractor.sha256) == (512, 64, 32, "abc")
    assert features.dtype == np.float32
    assert extractor.network.training  # a network in training goes on with it
    made.eval()
    for place in (0, 39):
        alone = torch.from_numpy(pixels[place].astype(np.float32) / 255).permute(2, 0, 1)[None]
        with torch.inference_mode():
            np.testing.assert_allclose(features[place], made.flip_averaged(alone)[0], atol=1e-5)
    assert extractor(pixels[:0]).shape == (0, 512)
    for wrong in (pixels.astype(np.float32), pixels[:, :32], pixels[0]):
        with pytest.raises(InputError, match=r"are not uint8 \[N, 64, 32, 3\]"):
            extractor(wrong)


def test_features_are_float32_in_a_training_with_tf32_too(monkeypatch):
    made = network()
    rules = float_rules(monkeypatch, made.backbone)
    with exact_numbers(tf32=True):
        FeatureNetwork(made, "abc", "cpu")(np.zeros((1, 64, 32, 3), np.uint8))
    assert rules == [(False, False, False)] * 2  # image and mirror image


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "resnet9"}, "backbone 'resnet9': take one of " + ", ".join(BACKBONES)),
        ({"neck": "wide"}, "neck 'wide'"),
        ({"last_stride": 3}, "last_stride 3"),
        ({"domains": 3}, "domains 3"),
        ({"stem": "large"}, "stem 'large'"),
        ({"activation": "gelu"}, "activation 'gelu'"),
        ({"classes": 0}, "classes 0: a whole number from 1"),
        ({"width": 10**6}, "width 1000000"),
        ({"embedding": 1.5}, "embedding 1.5"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_configuration_that_no_network_has(settings, said):
    with pytest.raises(InputError, match=said):
        ReidConfig(**({"classes": 3} | settings))


@pytest.mark.parametrize(("stem", "last_stride", "domains"), [("imagenet", 2, 1), ("small", 1, 2)])
def test_half_the_width_is_torchvision_s_network_with_half_the_channels(stem, last_stride, domains):
    half = network(stem=stem, last_stride=last_stride, domains=domains, neck="bnneck", width_factor=0.5)
    whole = network(stem=stem, last_stride=last_stride, domains=domains, neck="bnneck")
    assert (half.config.pooled_width, whole.config.pooled_width) == (256, 512)
    shapes = {name: tuple(value.shape) for name, value in whole.backbone.state_dict().items()}
    for name, value in half.backbone.state_dict().items():
        channels = value.shape[:2]
        doubled = tuple(size if size == 3 else 2 * size for size in channels)  # 3: red, green and blue
        assert (*doubled, *value.shape[2:]) == shapes[name], name
    assert half(images()).logits.shape == (3, CLASSES)
    # He's initialisation, as torchvision has it: variance 2 / (outputs * 9).
    torch.manual_seed(0)
    new = ReidNetwork(ReidConfig(CLASSES, backbone="resnet10", width_factor=0.5))
    weight = new.backbone.layer4[0].conv2.weight
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)


@pytest.mark.parametrize("factor", [0.05, 5.0, "half"])
def test_impossible_widths_are_refused(factor):
    with pytest.raises(InputError, match="width_factor"):
        ReidConfig(CLASSES, width_factor=factor)
