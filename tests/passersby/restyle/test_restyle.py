"""passersby/restyle/encoder.py: the refinement steps, against the paper's formula written out."""

import pytest
import torch

from passersby.errors import InputError
from passersby.restyle.encoder import EncoderConfig, RestyleEncoder, pooled, restyle_steps, working_size
from passersby.stylegan3 import GeneratorConfig


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    settings = {"w_dim": 12, "head_channels": 16, "backbone": "resnet10", "width_factor": 0.125}
    network = RestyleEncoder(EncoderConfig(height=32, width=32, **settings)).eval()
    with torch.no_grad():
        network(torch.rand(2, 6, 32, 32))
        network.styles.linear.weight.mul_(3)  # steps that can be seen
    return network


@pytest.fixture(scope="module")
def average():
    return torch.randn(16, 12, generator=torch.Generator().manual_seed(1))


def pictures(count: int, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1


def written_out(encoder, generator, images, average, steps):
    """Codes and images of each step for one picture at a time, enlarged by repeating pixels (16 -> 32)."""
    codes, made = [], []
    for image in images:
        w, y = average.clone(), generator.synthesis(average[None])[0]
        codes.append([])
        made.append([])
        for _ in range(steps):
            big = [part.repeat_interleave(2, 1).repeat_interleave(2, 2) for part in (image, y)]
            w = w + encoder(torch.cat(big)[None])[0]
            y = generator.synthesis(w[None])[0]
            codes[-1].append(w)
            made[-1].append(y)
    return torch.stack([torch.stack(c) for c in codes], 1), torch.stack([torch.stack(m) for m in made], 1)


@torch.no_grad()
def test_steps_are_the_papers(tiny, encoder, average):
    generator, images = tiny.generator(), pictures(3)
    found = list(restyle_steps(encoder, generator.synthesis, images, average, 3))
    codes, made = written_out(encoder, generator, images, average, 3)
    assert len(found) == 3
    # Batches of other sizes are summed in another order.
    torch.testing.assert_close(torch.stack([c for c, _ in found]), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack([y for _, y in found]), made, rtol=1e-4, atol=1e-5)
    assert (codes[2] - codes[1]).abs().max() > 1e-3  # the steps do something
    assert (codes[0] - codes[0].mean(0)).abs().max() > 1e-3  # and depend on the picture


@torch.no_grad()
def test_the_average_image_can_be_given(tiny, encoder, average):
    generator, images = tiny.generator(), pictures(2)
    image = generator.synthesis(average[None])
    plain = list(restyle_steps(encoder, generator.synthesis, images, average, 2))
    for given in (image, image[0]):
        found = list(restyle_steps(encoder, generator.synthesis, images, average, 2, given))
        for (codes, made), (expected_codes, expected) in zip(found, plain, strict=True):
            assert torch.equal(codes, expected_codes)
            assert torch.equal(made, expected)
    other = next(restyle_steps(encoder, generator.synthesis, images, average, 1, image + 0.5))
    assert not torch.allclose(other[0], plain[0][0])


def test_each_step_is_back_propagated_alone(tiny, encoder, average):
    generator, images = tiny.generator(), pictures(2)
    gradients, pairs = [], []
    for codes, made in restyle_steps(encoder, generator.synthesis, images, average, 2):
        encoder.zero_grad()
        (made - images).square().mean().backward()
        gradients.append(encoder.conv1.weight.grad.clone())
        pairs.append((codes.detach(), made.detach()))
    encoder.zero_grad()
    # The second step's, with what the first step gave as constants.
    codes, made = pairs[0]
    inputs = torch.cat([pooled(images, 32, 32), pooled(made, 32, 32)], 1)
    (generator.synthesis(codes + encoder(inputs)) - images).square().mean().backward()
    torch.testing.assert_close(gradients[1], encoder.conv1.weight.grad, rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().max() > 1e-6
    encoder.zero_grad(set_to_none=True)


def test_pooled_averages_or_repeats():
    images = pictures(2, 16, 8)
    smaller = images.reshape(2, 3, 8, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(pooled(images, 8, 4), smaller)
    assert torch.equal(pooled(images, 32, 16), images.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert pooled(images, 16, 8) is images
    mixed = images.reshape(2, 3, 8, 2, 8).mean(3).repeat_interleave(4, 3)
    torch.testing.assert_close(pooled(images, 8, 32), mixed)


@pytest.mark.parametrize(
    ("encoder_size", "generator_size", "size"),
    [
        ((256, 256), (1024, 1024), (256, 256)),
        ((256, 256), (128, 64), (128, 64)),
        ((64, 64), (128, 32), (64, 32)),
    ],
)
def test_working_size_is_the_smaller_on_each_side(encoder_size, generator_size, size):
    encoder = EncoderConfig(height=encoder_size[0], width=encoder_size[1])
    assert working_size(encoder, GeneratorConfig(*generator_size)) == size


def test_what_does_not_fit_is_refused_before_the_first_step(tiny, encoder, average):
    synthesis = tiny.generator().synthesis
    for images, code, steps, message in (
        (pictures(1), average, 0, "0 refinement steps"),
        (pictures(1), average, 1.0, "1.0 refinement steps"),
        (pictures(1), average[:15], 1, r"average code of shape \(15, 12\): the encoder needs \[16, 12\]"),
        (pictures(1)[:, :1], average, 1, r"images of shape \(1, 1, 16, 16\)"),
        (pictures(1).to(torch.uint8), average, 1, "torch.uint8: float"),
    ):
        with pytest.raises(InputError, match=message):
            restyle_steps(encoder, synthesis, images, code, steps)
