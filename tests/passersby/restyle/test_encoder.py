"""passersby/restyle/encoder.py: the published network, computed faster."""

import hashlib
import math

import pytest
import torch

from passersby.errors import InputError
from passersby.restyle.encoder import EncoderConfig, RestyleEncoder, load_backbone

SMALL = {"num_ws": 3, "w_dim": 20, "head_channels": 24, "backbone": "resnet10", "width_factor": 0.125}


def small(**settings) -> RestyleEncoder:
    torch.manual_seed(0)
    return RestyleEncoder(EncoderConfig(**{"height": 64, "width": 32} | SMALL | settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "backbone"),
    [
        (256, 256, "narrow"),  # all four convolutions of a head, of which two are matrix products
        (128, 64, "narrow"),
        (80, 48, "narrow"),  # features of 5 x 3: halves are rounded up
        (16, 16, "narrow"),  # one feature
        (32, 32, "resnet34"),
    ],
)
def test_it_is_the_published_network(plain, height, width, backbone):
    torch.manual_seed(3)
    heads = {"num_ws": 3, "w_dim": 20, "head_channels": 24}
    config = EncoderConfig(height=height, width=width, **heads)
    resnet = None
    if backbone == "narrow":
        config = EncoderConfig(height=height, width=width, **SMALL)
        resnet = plain.narrow_resnet((8, 16, 32, 64))
    theirs = plain.lively(plain.PlainEncoder(height, width, resnet=resnet, **heads))
    ours = RestyleEncoder(config).eval()
    ours.load_state_dict(plain.renamed(theirs.state_dict()), strict=True)
    x = torch.rand(2, 6, height, width) * 2 - 1
    with torch.no_grad():
        expected, found = theirs(x), ours(x)
    assert found.shape == (2, 3, 20)
    assert found.dtype == torch.float32
    # Sums of up to 4608 float32 products in another order.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    # Gradients in float64: in float32 a value that rounds to the other side of a kink changes them.
    weights, x = torch.rand(found.shape).double(), x.double()
    (ours.double()(x) * weights).sum().backward()
    (theirs.double()(x) * weights).sum().backward()
    gradients = plain.renamed({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        # The codes are float32, and so is the gradient that comes back through them.
        size = gradients[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-5 * size, msg=name)


def test_the_published_names_and_shapes():
    with torch.device("meta"):
        state = RestyleEncoder(EncoderConfig()).state_dict()
    shapes = {
        "conv1.weight": (64, 6, 7, 7),
        "bn1.running_var": (64,),
        "relu.weight": (64,),
        "body.0.conv1.weight": (64, 64, 3, 3),
        "body.3.downsample.0.weight": (128, 64, 1, 1),
        "body.15.bn2.weight": (512,),
        "styles.convs.0.weight": (16 * 512, 512, 3, 3),
        "styles.convs.6.bias": (16 * 512,),
        "styles.linear.weight": (16 * 512, 512),
    }
    for name, shape in shapes.items():
        assert tuple(state[name].shape) == shape, name
    assert "styles.convs.8.weight" not in state
    # ResNet-34 without its first layers and classifier, the new first layers, 16 heads of 4 convolutions each.
    head = 4 * (512 * 512 * 9 + 512) + 512 * 512 + 512
    wanted = (21_797_672 - 9408 - 128 - 513_000) + (64 * 6 * 49 + 128 + 64) + 16 * head
    with torch.device("meta"):
        assert sum(p.numel() for p in RestyleEncoder(EncoderConfig()).parameters()) == wanted


@pytest.mark.parametrize(
    ("size", "convolutions"),
    [((256, 256), 4), ((256, 128), 4), ((128, 64), 3), ((64, 64), 2), ((32, 16), 1), ((16, 16), 1), ((272, 32), 5)],
)
def test_heads_halve_the_features_down_to_one(size, convolutions):
    assert EncoderConfig(height=size[0], width=size[1]).head_convolutions == convolutions


def test_width_factor():
    assert EncoderConfig().stage_channels == (64, 128, 256, 512)
    assert EncoderConfig(width_factor=0.25).stage_channels == (16, 32, 64, 128)
    assert EncoderConfig(width_factor=0.1).stage_channels == (8, 16, 24, 48)  # whole multiples of 8
    assert small(width_factor=0.25)(torch.rand(2, 6, 64, 32)).shape == (2, 3, 20)


def test_an_image_alone_gives_what_it_gives_in_a_batch(plain):
    encoder = plain.lively(small(height=128, width=128))
    x = torch.rand(9, 6, 128, 128) * 2 - 1
    with torch.no_grad():
        together = encoder(x)
        alone = torch.cat([encoder(one[None]) for one in x])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6 * together.abs().max().item())


def test_another_memory_format_gives_the_same(plain):
    encoder, x = plain.lively(small()), torch.rand(2, 6, 64, 32)
    with torch.no_grad():
        expected = encoder(x)
        found = encoder.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_new_one_is_drawn_as_published():
    encoder = small(num_ws=16, w_dim=64, head_channels=64, width_factor=1.0)
    state = encoder.state_dict()
    first, head = state["conv1.weight"], state["styles.convs.2.weight"]
    for weights, fan_in in ((first, 6 * 49), (head, 64 * 9)):  # uniform within 1 / sqrt(fan in)
        bound = 1 / math.sqrt(fan_in)
        assert 0.98 * bound < weights.abs().max() <= bound
        assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    # He et al. 2015 by the fan out, as torchvision draws its ResNets.
    assert state["body.2.conv1.weight"].std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)
    assert state["body.2.downsample.0.weight"].std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert state["styles.linear.weight"].std().item() == pytest.approx(1, rel=0.02)
    assert torch.equal(state["styles.linear.bias"], torch.zeros(16 * 64))
    assert torch.equal(state["relu.weight"], torch.full((64,), 0.25))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet50"}, "backbone 'resnet50': take one of resnet34, resnet18, resnet10"),
        ({"height": 8}, "height 8: a whole number from 16 to 4096"),
        ({"width": 64.0}, "width 64.0: a whole number"),
        ({"num_ws": 0}, "num_ws 0: a whole number from 1"),
        ({"width_factor": float("nan")}, "width_factor nan: a number from 0.1 to 4"),
        ({"head_channels": True}, "head_channels True: a whole number"),
    ],
)
def test_configurations_that_no_encoder_has(settings, message):
    with pytest.raises(InputError, match=message):
        EncoderConfig(**settings)


@pytest.mark.parametrize("shape", [(2, 3, 64, 32), (2, 6, 32, 64), (6, 64, 32)])
def test_inputs_of_another_shape(shape):
    with pytest.raises(InputError, match=r"expected \[N, 6, 64, 32\]"):
        small()(torch.rand(shape))


def test_load_backbone_is_torchvisions(plain, tmp_path):
    path = tmp_path / "resnet18.pth"
    resnet = plain.imagenet_file(path, "resnet18")
    encoder = small(backbone="resnet18", width_factor=1.0)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    notes = load_backbone(encoder, path)
    x = torch.rand(1, 64, 16, 8)
    expected = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))
    torch.testing.assert_close(encoder.eval().body(x), expected, rtol=1e-5, atol=1e-5)
    for name, tensor in encoder.state_dict().items():
        if not name.startswith("body."):
            assert torch.equal(tensor, before[name]), name
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert notes == (
        f"backbone resnet18 starts from ImageNet weights: resnet18.pth, sha256 {sha256}; its first convolution starts "
        "from random ones, for it has 6 channels",
    )


def test_load_backbone_refuses_what_does_not_fit(plain, tmp_path):
    path = tmp_path / "resnet18.pth"
    plain.imagenet_file(path, "resnet18")
    for settings, message in (
        (
            {"backbone": "resnet34", "width_factor": 1.0},
            r"block 2.conv1.weight is missing, which torchvision's resnet34",
        ),
        ({"backbone": "resnet18", "width_factor": 0.5}, r"width 0.5: there are no ImageNet weights"),
        ({"backbone": "resnet10", "width_factor": 1.0}, r"backbone resnet10 of width 1.0: there are no"),
    ):
        encoder = small(**settings)
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        with pytest.raises(InputError, match=message):
            load_backbone(encoder, path)
        assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    state = torch.load(path, weights_only=True)
    encoder = small(backbone="resnet18", width_factor=1.0)
    for change, message in (
        ({"layer5.0.conv1.weight": torch.zeros(1)}, "layer5.0.conv1.weight is not one of torchvision's"),
        ({"layer1.0.conv3.weight": torch.zeros(1)}, "0.conv3.weight is not one of torchvision's"),
        ({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, r"0.conv1.weight has shape \(64, 64, 1, 1\)"),
        ({"layer1.0.conv1.weight": torch.full((64, 64, 3, 3), math.nan)}, "no finite numbers"),
    ):
        torch.save(state | change, tmp_path / "other.pth")
        with pytest.raises(InputError, match=message):
            load_backbone(encoder, tmp_path / "other.pth")
    with pytest.raises(InputError, match="nowhere.pth: No such file"):
        load_backbone(encoder, tmp_path / "nowhere.pth")


@pytest.mark.gpu
def test_a_gpu_gives_the_same(plain):
    encoder = plain.lively(small(height=256, width=256, num_ws=16))
    x = torch.rand(3, 6, 256, 256)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = encoder(x)
        found = encoder.cuda()(x.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
