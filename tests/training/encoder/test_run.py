"""The encoder loop: the step against plain PyTorch, going on exactly, what it refuses. Tiny real networks."""

import dataclasses
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from passersby import weights
from passersby.errors import InputError
from passersby.reid.checkpoint import save_reid
from passersby.reid.network import ReidConfig, ReidNetwork
from passersby.restyle.checkpoint import load_encoder
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.stylegan3 import Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import save_network
from reporting.curves import read_history
from tests.helpers.gpu_path import go_the_way_of_a_gpu, gradients_at_codes
from tests.helpers.trainings import (
    check_equal_networks,
    check_equal_states,
    check_float32,
    kill_while_it_writes_a_checkpoint,
    stop_before_step,
)
from training.checkpoints import last_checkpoint
from training.encoder import run as encoder_loop
from training.encoder.config import EncoderTraining
from training.encoder.presets import PRESETS, preset
from training.encoder.run import VALIDATION_PICTURE, train
from training.encoder.start import (
    BEST,
    ENCODER,
    claim_folder,
    load_data,
    load_generator,
    load_networks,
    start,
)
from training.encoder.step import Batch, train_step
from training.encoder.validation import Feeder
from training.log import HISTORY

CPU = torch.device("cpu")
HEIGHT, WIDTH = 32, 16


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A Market tree of 6 people with 4 pictures each, a tiny generator and a tiny re-ID network."""
    root, random = tmp_path_factory.mktemp("encoder"), np.random.default_rng(0)
    tree = root / "market/bounding_box_train"
    tree.mkdir(parents=True)
    for identity in range(1, 7):
        colour = np.random.default_rng(identity).integers(0, 256, 3)
        for index in range(4):
            image = np.clip(colour + random.integers(-40, 40, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(tree / f"{identity:04d}_c{index % 2 + 1}s1_{index:06d}_00.png"), image)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig.config_t(HEIGHT, WIDTH, channel_base=128, channel_max=8))
        reid = ReidNetwork(ReidConfig(6, backbone="resnet10", stem="small", height=HEIGHT, width=WIDTH))
    save_network(root / "generator.safetensors", generator, record={"trained_on": {"name": "toys"}})
    save_reid(root / "reid.safetensors", reid, class_names=tuple("abcdef"), record={})
    return root


def tiny(files: Path, out: Path, **changes) -> EncoderTraining:
    values = PRESETS["tiny"] | {"width_factor": 0.1, "head_channels": 16, "height": HEIGHT, "width": WIDTH}
    values |= {"steps": 6, "batch": 4, "refinements": 2, "validation_steps": 3, "validation_images": 4}
    values |= {"validation_refinements": 2, "shown_refine_steps": 2, "status_seconds": 0.001, "lpips_weight": 0.0}
    values |= {"network": files / "generator.safetensors", "identity_network": files / "reid.safetensors"}
    return EncoderTraining(data=files / "market", out=out, preset="tiny", **values | changes)


def run(config: EncoderTraining) -> Path | None:
    config.check()
    claim_folder(config)
    return train(config, CPU)


def check_equal(one: Path, two: Path) -> None:
    """Encoders, optimiser, counters and history: bit for bit."""
    for name in (ENCODER, f"{last_checkpoint(one).relative_to(one)}/{ENCODER}"):
        check_equal_networks(*(load_encoder(out / name).encoder.state_dict() for out in (one, two)))
    states = check_equal_states(one, two)
    assert states[0]["step"] == 6
    assert states[0]["best"] == states[1]["best"]


@pytest.fixture(scope="module")
def straight(files, tmp_path_factory):
    """A quarter of the images generated, in one go."""
    out = tmp_path_factory.mktemp("straight")
    run(tiny(files, out, generated_share=0.25))
    return out


def test_float32_is_float32_unless_tf32_is_asked_for(files, tmp_path, monkeypatch):
    check_float32(
        monkeypatch, encoder_loop.EncoderTrainer, lambda tf32: run(tiny(files, tmp_path / str(tf32), tf32=tf32))
    )


@pytest.mark.slow
def test_encoder_knows_its_generator_and_what_it_was_trained_on(files, straight):
    loaded = load_encoder(straight / ENCODER)
    generator = load_generator(tiny(files, straight))
    assert loaded.generator == {"file": "generator.safetensors", "sha256": generator.sha256}
    assert torch.equal(loaded.average, generator.generator.mapping.w_avg.expand(16, -1))
    record = loaded.record
    assert record["trained_on"]["real"][0]["people"] == 6
    assert record["generator"]["trained_on"] == {"name": "toys"}
    assert record["perceptual"].startswith("ST-LPIPS")
    assert len(record["identity"]["sha256"]) == 64
    assert record["configuration"]["generated_share"] == 0.25
    assert str(straight.parent) not in str(record)  # folders of this machine are nobody's business
    log = (straight / "log.txt").read_text()
    for word in (
        "images/s",
        "ETA",
        "LPIPS",
        "identity",
        " w ",
        "of them generated",
        "the best so far",
        "finished after",
    ):
        assert word in log, word
    history = read_history(straight / HISTORY)
    assert len(history) == 2
    assert {"loss/l2", "loss/codes", "validation/lpips", "validation/lpips_1", "validation/identity"} <= history[
        1
    ].keys()
    picture = cv2.imread(str(straight / VALIDATION_PICTURE))
    assert min(picture.shape[:2]) > 200
    assert cv2.imread(str(straight / "curves.png")) is not None


@pytest.mark.slow
def test_the_encoder_that_is_kept_is_the_best_on_validation_pictures(files, tmp_path):
    values = {"steps": 4, "validation_steps": 1, "lr": 0.02, "final_lr": 1.0, "identity_weight": 0.0}
    run(tiny(files, tmp_path, shown_refine_steps=0, validation_images=2, **values))
    history = read_history(tmp_path / HISTORY)
    lpips = [record["validation/lpips"] for record in history]
    assert len(set(lpips)) == 4
    best = load_encoder(tmp_path / ENCODER).record
    assert best["steps"] == 1 + int(np.argmin(lpips))
    assert not (tmp_path / BEST).exists()


@pytest.mark.slow
def test_it_learns(files, tmp_path):
    """One batch of images that the generator makes: an answer there is, unlike for pictures by a random network."""
    config = tiny(files, tmp_path, batch=8, generated_share=1.0, identity_weight=0.0, codes_weight=0.0)
    frozen = load_networks(config, CPU).frozen
    state, _ = start(config, frozen.generator.config, CPU)
    batch = Feeder(load_data(config, frozen.generator.config), config, frozen.generator, CPU).batch(0)
    errors = [train_step(state, frozen, batch, 2, 0.0, 0.003)["loss/l2"].mean().item() for _ in range(15)]
    assert max(errors[-3:]) < errors[0] / 3, errors


@pytest.mark.slow
def test_stopped_and_started_again_it_is_the_same_training(files, straight, tmp_path, monkeypatch):
    config = tiny(files, tmp_path, generated_share=0.25, checkpoint_minutes=1e-9)
    stop_before_step(monkeypatch, encoder_loop, 4, lambda: run(config))
    assert last_checkpoint(tmp_path).name == "000000004"
    run(tiny(files, tmp_path, generated_share=0.25))
    check_equal(straight, tmp_path)


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_half_written_it_goes_on_exactly(files, straight, tmp_path):
    config = tiny(files, tmp_path, generated_share=0.25, checkpoint_minutes=1e-9)
    kill_while_it_writes_a_checkpoint("encoder", config, 5)
    assert last_checkpoint(tmp_path).name == "000000004"
    run(tiny(files, tmp_path, generated_share=0.25))
    check_equal(straight, tmp_path)


def test_a_step_is_restyle_written_out(files, tmp_path):
    """Gradients of one step, against the published loop in a few lines: L2 and the known w, two refinements."""
    config = tiny(files, tmp_path, generated_share=0.5, identity_weight=0.0)
    frozen = load_networks(config, CPU).frozen
    state, _ = start(config, frozen.generator.config, CPU)
    data = load_data(config, frozen.generator.config)
    batch = Feeder(data, config, frozen.generator, CPU).batch(0)
    assert batch.images.shape == (4, 3, HEIGHT, WIDTH)
    assert batch.codes.shape == (2, 16, 512)
    again = frozen.generator.synthesis(batch.codes).clamp(-1, 1)
    torch.testing.assert_close(batch.images[2:], again)

    other, _ = start(config, frozen.generator.config, CPU)
    encoder = other.encoder.train()
    codes, current = frozen.average.expand(4, -1, -1), frozen.average_image.expand(4, -1, -1, -1)
    for _ in range(2):
        codes = codes.detach() + encoder(torch.cat((batch.images, current.detach()), 1))
        current = frozen.generator.synthesis(codes)
        loss = (current - batch.images).square().mean()
        loss = loss + 3.0 * ((codes[2:] - batch.codes) / frozen.spread).square().mean((1, 2)).sum() / 4
        loss.backward()
    wanted = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    moved = []
    state.optimizer.step = lambda: moved.append({n: p.grad.clone() for n, p in state.encoder.named_parameters()})
    scalars = train_step(state, frozen, batch, 2, 3.0, 0.001)
    for name, gradient in moved[0].items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)
    assert scalars["loss/l2"].shape == (4,)
    assert scalars["loss/codes"].shape == (2,)


def gradient_of_a_step(config, batch, frozen):
    """The gradient of one step's only refinement at all parameters of the encoder."""
    state, _ = start(config, frozen.generator.config, CPU)
    moved = []
    state.optimizer.step = lambda: moved.extend(p.grad.flatten().clone() for p in state.encoder.parameters())
    train_step(state, frozen, batch, 1, 0.0, 0.001)
    return torch.cat(moved)


class FixedTarget(InversionLoss):
    """The pixels' loss against these pictures [n, 3, h, w], whatever the encoder sees."""

    def __init__(self, images: torch.Tensor):
        super().__init__(LossWeights(l2=1, lpips=0, identity=0), None, None)
        self.images = images

    def target(self, images):
        return super().target(self.images)


@pytest.mark.slow
@pytest.mark.parametrize("near", [True, False])
def test_in_float16_no_gradient_vanishes(files, tmp_path, monkeypatch, near):
    """Near: pictures that differ from the reconstruction by 0.03, as late in a training; far: other people's."""
    config = tiny(files, tmp_path, identity_weight=0.0, batch=8)
    frozen = load_networks(config, CPU).frozen
    images = Feeder(load_data(config, frozen.generator.config), config, frozen.generator, CPU).batch(0).images
    if near:
        state, _ = start(config, frozen.generator.config, CPU)
        with torch.no_grad():
            current = frozen.average_image.expand(8, -1, -1, -1)
            codes = frozen.average + state.encoder.train()(torch.cat((images, current), 1))
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
            pictures = frozen.generator.synthesis(codes) + 0.03 * noise
    else:
        pictures = images
    batch, frozen = Batch(images, None, len(images)), dataclasses.replace(frozen, loss=FixedTarget(pictures))
    at_codes = gradients_at_codes(frozen.generator.synthesis)
    go_the_way_of_a_gpu(monkeypatch, frozen.generator, torch.float32)
    exact = gradient_of_a_step(config, batch, frozen)
    convolutions = go_the_way_of_a_gpu(monkeypatch, frozen.generator)
    found = gradient_of_a_step(config, batch, frozen)
    assert torch.float16 in {dtype for dtype, _ in convolutions}
    monkeypatch.setattr("training.encoder.step.loss_scale", lambda network: 1.0)
    unscaled = gradient_of_a_step(config, batch, frozen)
    zeros = [(gradient == 0).float().mean().item() for gradient in at_codes]  # whole layers whose codes do not move
    likeness = [torch.nn.functional.cosine_similarity(exact, g, 0).item() for g in (found, unscaled)]
    assert zeros[1] <= zeros[0] + 0.01
    # Near, what is left is the image itself, which float16 rounds: 0.986 seen, and 0.77 without the scale.
    assert likeness[0] > (0.95 if near else 0.999)
    assert 0.8 < found.norm() / exact.norm() < 1.25
    if near:
        assert zeros[2] > zeros[0] + 0.2
        assert likeness[1] < 0.9


def test_a_gradient_that_overflows_moves_nothing(files, tmp_path, monkeypatch):
    config = tiny(files, tmp_path, identity_weight=0.0)
    frozen = load_networks(config, CPU).frozen
    batch = Feeder(load_data(config, frozen.generator.config), config, frozen.generator, CPU).batch(0)
    monkeypatch.setattr("training.encoder.step.loss_scale", lambda network: 2.0**127)
    gradient = gradient_of_a_step(config, Batch(batch.images * 1e4, None, len(batch.images)), frozen)
    assert gradient.isfinite().all()
    assert (gradient == 0).any()


def test_workers_share_what_one_would_see(files, tmp_path):
    config = tiny(files, tmp_path, generated_share=0.5, batch=8)
    generator = load_generator(config).generator
    data = load_data(config, generator.config)
    whole = Feeder(data, config, generator, CPU).batch(3)
    parts = [Feeder(data, config, generator, CPU, rank, 2).batch(3) for rank in range(2)]
    torch.testing.assert_close(torch.cat([part.images for part in parts]), whole.images)
    torch.testing.assert_close(torch.cat([part.codes for part in parts if part.codes is not None]), whole.codes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity_network": None}, "--identity-weight 0.1 needs --identity-network FILE"),
        ({"batch": 1}, "batch norm needs two"),
        ({"generated_share": 1.5}, "--generated-share 1.5"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"weights": Path("resnet34.pth")}, "--weights: ImageNet weights are of"),
    ],
)
def test_impossible_values_are_named(files, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        tiny(files, tmp_path, **changes).check()
    assert message in str(caught.value)


@pytest.mark.slow
def test_other_networks_and_other_pictures_are_refused(files, straight, tmp_path):
    config = tiny(files, straight, generated_share=0.25)
    with pytest.raises(InputError, match="holds a training with --lr 0.001, not 0.01"):
        claim_folder(dataclasses.replace(config, lr=0.01))
    loaded = load_generator(config)
    save_network(tmp_path / "other.safetensors", loaded.generator, record={"trained_on": "others"})
    with pytest.raises(InputError, match="the generator or the networks of the losses are others"):
        train(dataclasses.replace(config, network=tmp_path / "other.safetensors"), CPU)


def test_a_training_with_a_former_demo_network_says_how_to_go_on(files, tmp_path, monkeypatch):
    former, demo = files / "generator.safetensors", tmp_path / "demo.safetensors"
    with torch.random.fork_rng():
        other = Generator(GeneratorConfig.config_t(HEIGHT, WIDTH, channel_base=128, channel_max=8, w_dim=256))
    save_network(demo, other, record={})  # its codes are shorter, so the encoder's weights do not fit either
    config = tiny(files, tmp_path / "out", network=None, checkpoint_minutes=1e-9)
    monkeypatch.setattr(weights, "DEMO_NETWORK", former)
    stop_before_step(monkeypatch, encoder_loop, 1, lambda: run(config))
    sha256 = hashlib.sha256(former.read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "_FORMER_DEMO_NETWORKS", {sha256: "abcdef0:demo.safetensors"})
    monkeypatch.setattr(weights, "DEMO_NETWORK", demo)
    with pytest.raises(InputError) as caught:
        run(config)
    assert str(caught.value) == (
        f"--out {config.out} was begun with the demo network of an earlier version (sha256 {sha256}): write it into a "
        "file, git show abcdef0:demo.safetensors > former.safetensors, and give --network former.safetensors"
    )
    run(dataclasses.replace(config, network=former, max_minutes=0.0))  # as the line says
    assert "going on from step 1" in (config.out / "log.txt").read_text()


def test_a_training_that_diverges_ends_with_advice(files, tmp_path):
    with pytest.raises(InputError, match=r"the loss is .* the training has diverged; take a lower --lr than 1e\+18"):
        run(tiny(files, tmp_path, lr=1e18, identity_weight=0.0))


def test_presets_are_complete():
    for name in PRESETS:
        dataclasses.replace(preset(name, Path("data"), Path("out")), identity_network=Path("reid")).check()


def test_batches_without_generated_images_have_no_codes(files, tmp_path):
    config = tiny(files, tmp_path)
    generator = load_generator(config).generator
    batch = Feeder(load_data(config, generator.config), config, generator, CPU).batch(0)
    assert isinstance(batch, Batch)
    assert batch.codes is None
    assert batch.images.abs().max() <= 1
