"""The loss that brings intraclass correlations of generated pairs to those of real pairs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.gan import intraclass_loss
from training.gan.intraclass_loss import MEMORY, IntraclassLoss, look, new_intraclass_loss

CPU = torch.device("cpu")


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 64, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ready(fakes: torch.Tensor, reals: torch.Tensor, weight: float = 1.0) -> IntraclassLoss:
    """The loss whose averages are those of these pictures."""
    loss = new_intraclass_loss(weight, CPU)
    loss(fakes, reals)
    loss.update()
    loss.iterations = MEMORY
    return loss


def test_the_look_of_a_picture_is_colours_and_edges_of_its_cells():
    picture = pictures(1)[0].double().numpy()
    cells = lambda plane: plane.reshape(16, 4, 8, 4).mean((1, 3)).flatten()  # noqa: E731
    grey = np.tensordot([0.299, 0.587, 0.114], picture, 1)
    across, along = np.zeros((64, 32)), np.zeros((64, 32))
    across[:, :-1] = np.abs(grey[:, 1:] - grey[:, :-1])
    along[:-1] = np.abs(grey[1:] - grey[:-1])
    expected = np.concatenate([cells(plane) for plane in (*picture, across, along)])
    np.testing.assert_allclose(look(torch.from_numpy(picture)[None].float())[0].numpy(), expected, atol=1e-6)


def test_pictures_of_all_sizes_have_as_many_features():
    for size in ((16, 8), (64, 64), (128, 64), (256, 128)):
        assert look(torch.zeros(2, 3, *size)).shape == (2, 640)
    small = pictures(2)
    large = F.interpolate(small, scale_factor=2, mode="nearest")
    torch.testing.assert_close(look(large), look(small))


def test_the_averages_are_the_moments_of_the_pairs():
    fakes, reals = pictures(12, 1), pictures(12, 2)
    loss = ready(fakes, reals)
    for moments, made in ((loss.fake, fakes), (loss.real, reals)):
        found = look(made).double().numpy()
        expected = [found.mean(0), (found**2).mean(0), (found[::2] * found[1::2]).mean(0)]
        np.testing.assert_allclose(moments.numpy(), np.stack(expected), atol=1e-6)


def test_real_pairs_are_averaged_over_all_iterations_and_generated_pairs_over_the_last_ones():
    loss = new_intraclass_loss(1.0, CPU)
    values = np.linspace(-1, 1, MEMORY + 20).astype(np.float32)
    mean = 0.0
    for iteration, value in enumerate(values):
        same = torch.full((4, 3, 64, 32), float(value))
        loss(same, same)
        loss.update()
        mean += (value - mean) / min(iteration + 1, MEMORY)
    np.testing.assert_allclose(loss.real[0, :384].numpy(), values.mean(), atol=1e-5)
    np.testing.assert_allclose(loss.fake[0, :384].numpy(), mean, atol=1e-5)


def test_the_gradient_is_that_of_the_squared_error_of_the_correlations():
    # Averages of this very batch: then the loss, linear in the pairs, has the gradient of the error itself.
    shared = pictures(6, 3).repeat_interleave(2, 0)
    fakes = (0.7 * shared + 0.3 * pictures(12, 1)).requires_grad_(True)
    reals = 0.3 * pictures(12, 2)  # no variance of the fakes is below its floor
    loss, scalars = ready(fakes.detach(), reals, weight=5.0)(fakes, reals)
    loss.mean().backward()

    def correlation(found: torch.Tensor) -> torch.Tensor:
        mean = found.mean(0)
        covariance = (found[::2] * found[1::2]).mean(0) - mean.square()
        return covariance / (found.square().mean(0) - mean.square() + 1e-4)

    again = fakes.detach().requires_grad_(True)
    error = correlation(look(again)) - correlation(look(reals))
    (5.0 * error.square().mean()).backward()
    torch.testing.assert_close(fakes.grad, again.grad, rtol=1e-3, atol=1e-6)
    assert scalars["intraclass/error"][0].item() == pytest.approx(error.square().mean().sqrt().item(), rel=1e-3)
    assert torch.equal(scalars["G/intraclass_loss"], loss)
    assert loss.shape == (6, 1)


def test_nothing_is_learned_before_the_averages_are_known():
    loss = new_intraclass_loss(1.0, CPU)
    for _ in range(MEMORY):
        fakes = pictures(8).requires_grad_(True)
        value, _ = loss(fakes, pictures(8, 1))
        value.sum().backward()
        assert not fakes.grad.any()
        loss.update()
    value, _ = loss(pictures(8), pictures(8, 1))
    assert value.any()


def test_rounds_of_an_iteration_are_one_batch():
    fakes, reals = pictures(16, 1), pictures(16, 2)
    whole, parts = ready(fakes, reals), ready(fakes, reals)
    value, _ = whole(fakes, reals)
    halves = [parts(fakes[part], reals[part])[0] for part in (slice(8), slice(8, 16))]
    torch.testing.assert_close(torch.cat(halves), value)
    whole.update()
    parts.update()
    torch.testing.assert_close(whole.fake, parts.fake)
    torch.testing.assert_close(whole.real, parts.real)


def test_it_goes_on_from_its_state():
    fakes, reals = pictures(8, 1), pictures(8, 2)
    one = ready(fakes, reals)
    other = new_intraclass_loss(1.0, CPU)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(fakes, reals)[0], other(fakes, reals)[0])


def test_a_generator_learns_what_belongs_to_the_person():
    # Real people keep the colour of the middle, and everything else is new in each picture. The generator begins with
    # people who keep both.
    random = torch.Generator().manual_seed(0)
    middle = torch.zeros(1, 1, 64, 32)
    middle[:, :, 16:48, 8:24] = 1

    def seen(own_of_middle: torch.Tensor, own_of_rest: torch.Tensor) -> torch.Tensor:
        who = torch.randn(16, 2, 3, 1, 1, generator=random).repeat_interleave(2, 0)
        how = torch.randn(32, 2, 3, 1, 1, generator=random)
        shares = enumerate((own_of_middle, own_of_rest))
        inner, outer = (own * who[:, i] + (1 - own**2).sqrt() * how[:, i] for i, own in shares)
        return 0.3 * (inner * middle + outer * (1 - middle))

    raw = torch.tensor([2.0, 2.0]).requires_grad_(True)
    optimizer, loss = torch.optim.Adam([raw], lr=0.03), new_intraclass_loss(1.0, CPU)
    for _ in range(260):
        value, _ = loss(seen(*raw.sigmoid()), seen(torch.tensor(0.95), torch.tensor(0.2)))
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
        loss.update()
    of_middle, of_rest = raw.sigmoid().tolist()
    assert of_middle == pytest.approx(0.95, abs=0.05)
    assert of_rest == pytest.approx(0.2, abs=0.15)


def test_a_collapsed_generator_gets_no_huge_loss():
    same = torch.zeros(8, 3, 64, 32)
    loss = ready(same, pictures(8, 2), weight=1.0)
    value, _ = loss(same + pictures(8, 3), pictures(8, 2))
    assert value.abs().max() < 1e4
    assert intraclass_loss._variance(loss.fake).min() > 0
