"""The re-ID loop: the step against plain PyTorch, going on exactly, what it refuses. Tiny real networks."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import nn

from datasets.reid.training_set import FURTHER, PEOPLE, REAL, SINGLES, VARIANTS
from passersby.errors import InputError
from passersby.reid.checkpoint import load_reid, save_reid
from passersby.reid.network import ReidConfig, ReidNetwork
from reporting.curves import read_history
from tests.helpers.trainings import (
    check_equal_networks,
    check_equal_states,
    check_float32,
    kill_while_it_writes_a_checkpoint,
    stop_before_step,
)
from training import memory
from training.checkpoints import last_checkpoint
from training.log import HISTORY
from training.reid import run as reid_loop
from training.reid.augment import AugmentConfig, draw
from training.reid.config import ReidTraining
from training.reid.data import Feeder
from training.reid.labels import Labelling
from training.reid.presets import PRESETS, preset
from training.reid.run import load_data, train
from training.reid.start import NETWORK, claim_folder, make_stages, start
from training.reid.step import Batch, ReidState, StepSettings, make_optimizer, train_step

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]
HEIGHT, WIDTH = 32, 16


def write_person(folder: Path, identity: int, count: int, random: np.random.Generator) -> None:
    """Pictures of one colour with noise: easy to tell apart."""
    folder.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(identity).integers(0, 256, 3)
    for index in range(count):
        noise = random.integers(-40, 40, (HEIGHT, WIDTH, 3))
        image = np.clip(colour + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{identity:04d}_c{index % 2 + 1}s1_{index:06d}_00.png"), image)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A Market tree of 6 people with 7 pictures each, and a folder of 3 artificial people."""
    root, random = tmp_path_factory.mktemp("reid"), np.random.default_rng(0)
    for identity in range(1, 7):
        write_person(root / "market/bounding_box_train", identity, 7, random)
    for identity in range(11, 14):
        write_person(root / f"people/{identity}", identity, 4, random)
    for identity in range(1, 7):
        write_person(root / f"variants/{identity}", identity, 3, random)
    return root


def tiny(data: Path, out: Path, **changes) -> ReidTraining:
    values = PRESETS["tiny"] | {"batch": 8, "epochs": 4.0, "milestones": (3.0,), "status_seconds": 0.001}
    return ReidTraining(data=data / "market", out=out, preset="tiny", **values | changes)


def strong(data: Path, out: Path, **changes) -> ReidTraining:
    values = PRESETS["strong-small"] | {"height": HEIGHT, "width": WIDTH, "batch": 16, "epochs": 3.0}
    values |= {"people": (data / "people",), "variants": (data / "variants",), "warmup_epochs": 1.0}
    values |= {"milestones": (2.0,), "status_seconds": 0.001, "generated_share": 0.5}
    return ReidTraining(data=data / "market", out=out, preset="strong-small", **values | changes)


def run(config: ReidTraining) -> Path | None:
    config.check()
    claim_folder(config)
    return train(config, CPU)


def check_equal(one: Path, two: Path) -> None:
    """Network, optimiser, counters and history: bit for bit."""
    check_equal_networks(*(load_reid(out / NETWORK).network.state_dict() for out in (one, two)))
    check_equal_states(one, two)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The strong preset with generated images of both kinds, in one go."""
    out = tmp_path_factory.mktemp("straight")
    run(strong(data, out))
    return out


def test_float32_is_float32_unless_tf32_is_asked_for(data, tmp_path, monkeypatch):
    check_float32(monkeypatch, reid_loop.ReidTrainer, lambda tf32: run(tiny(data, tmp_path / str(tf32), tf32=tf32)))


@pytest.mark.slow
def test_network_knows_its_classes_and_what_it_was_trained_on(straight):
    loaded = load_reid(straight / NETWORK)
    assert len(loaded.class_names) == 9
    assert len(set(loaded.class_names)) == 9
    record = loaded.record
    assert record["trained_on"]["real"][0]["people"] == 6
    assert record["trained_on"]["people"][0]["images"] == 12
    assert record["configuration"]["label_smoothing"] == 0.1
    assert record["steps"] > 0
    assert str(straight.parent) not in str(record)  # folders of this machine are nobody's business
    assert cv2.imread(str(straight / "curves.png")) is not None
    log = (straight / "log.txt").read_text()
    for word in ("images/s", "ETA", "waiting for data", "triplet", "generated", "Rank-1 error", "finished after"):
        assert word in log, word
    history = read_history(straight / HISTORY)
    assert len(history) == 3
    assert {"loss/real", "loss/generated", "error/real", "validation/loss", "validation/error"} <= history[-1].keys()


@pytest.mark.slow
def test_it_learns(data, tmp_path):
    run(tiny(data, tmp_path, epochs=12.0, milestones=(10.0,), dropout=0.0, pad=1))
    history = read_history(tmp_path / HISTORY)
    assert history[-1]["validation/error"] <= 1 / 6  # chance is 5 / 6
    assert history[-1]["loss/real"] < history[0]["loss/real"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "strong"])
def test_stopped_and_started_again_it_is_the_same_training(data, straight, tmp_path, monkeypatch, name):
    make = {"tiny": tiny, "strong": strong}[name]
    if name == "tiny":
        straight = tmp_path / "straight"
        run(make(data, straight))
    out = tmp_path / "out"
    config = make(data, out, checkpoint_minutes=1e-9)
    stop_before_step(monkeypatch, reid_loop, 3, lambda: run(config))
    assert last_checkpoint(out).name == "000000003"
    run(make(data, out))
    check_equal(straight, out)


def scarce(data: Path, out: Path, **changes) -> ReidTraining:
    """All that comes with few labelled people: further people, single pictures, changes, stages of other sources."""
    values = {"labelled_people": 3, "further_people": 2, "single_pictures": 5, "surroundings": 0.7, "colours": 0.7}
    values |= {"jitter": 0.7, "generated_jitter": 0.2, "sampler": "shuffle", "triplet_weight": 0.0, "steps": 8}
    values |= {"stages": ("0.5", "0.25:sources=real/further,lr=0.0005", "0.25:plain,continued,sources=real")}
    return strong(data, out, **values | {"variants": (), "batch": 8} | changes)


@pytest.fixture(scope="module")
def straight_stages(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stages")
    run(scarce(data, out))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [3, 4])  # within a stage, and between two: the optimiser begins anew
def test_a_training_of_stages_goes_on_exactly(data, straight_stages, tmp_path, monkeypatch, stopped):
    config = scarce(data, tmp_path / "out", checkpoint_minutes=1e-9)
    stop_before_step(monkeypatch, reid_loop, stopped, lambda: run(config))
    run(scarce(data, tmp_path / "out"))
    check_equal(straight_stages, tmp_path / "out")
    log = (tmp_path / "out/log.txt").read_text()
    assert "stage 2 of 3: 2 steps, surroundings 0.7; colours 0.7; jitter 0.7; sources real, further" in log
    record = load_reid(tmp_path / "out" / NETWORK).record
    assert record["configuration"]["stages"][2] == "0.25:plain,continued,sources=real"
    assert record["trained_on"]["trained"] == {"real": 18, "people": 12, "variants": 0, "further": 14, "singles": 5}


def batches_of(config: ReidTraining, rank: int = 0, workers: int = 1) -> list[Batch]:
    images = load_data(config)
    stages = make_stages(config, images.classes, images.sources, 8)
    feeder = Feeder(images, config, stages, CPU, rank, workers)
    result = [feeder.batch(step) for step in range(8)]
    feeder.close()
    return result


def test_batches_of_stages_have_their_sources_and_changes(data):
    config = scarce(data, Path("out"))
    batches = batches_of(config)
    sources = [set(batch.sources.tolist()) for batch in batches]
    assert set.union(*sources[:4]) == {REAL, PEOPLE, FURTHER, SINGLES}
    assert set.union(*sources[4:6]) == {REAL, FURTHER}
    assert set.union(*sources[6:]) == {REAL}
    assert all(batch.changes is not None and batch.donors is not None for batch in batches[:6])
    assert all(batch.changes is None and batch.donors is None for batch in batches[6:])
    generated = torch.cat([batch.sources == PEOPLE for batch in batches[:4]]).numpy()
    gammas = np.abs(np.log2(np.concatenate([batch.changes.jitter[:, 0] for batch in batches[:4]])))
    assert gammas[generated].max() <= 0.2 * 0.6 < gammas[~generated].max() <= 0.7 * 0.6


def test_a_worker_s_images_are_its_part_of_the_whole_batch(data):
    """Whatever the number of workers, and whichever step a feeder begins with."""
    config = scarce(data, Path("out"))
    whole, halves = batches_of(config), [batches_of(config, rank, 2) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [half[step] for half in halves]
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        if batch.changes is not None:
            assert torch.equal(batch.donors, torch.cat([part.donors for part in parts]))
            jitter = np.concatenate([part.changes.jitter for part in parts])
            assert np.array_equal(batch.changes.jitter, jitter)
    images = load_data(config)
    feeder = Feeder(images, config, make_stages(config, images.classes, images.sources, 8), CPU)
    late = feeder.batch(5)
    feeder.close()
    assert torch.equal(late.images, whole[5].images)
    assert np.array_equal(late.changes.noise_starts, whole[5].changes.noise_starts)


def test_further_people_and_single_pictures_count_as_real_pictures():
    sources = [REAL] * 4 + [FURTHER] * 2 + [SINGLES] * 2
    scalars, _ = one_step(Labelling(generated_weight=0.0, people="lsro"), sources, weight=1.0)
    assert len(scalars["loss/real"]) == 6
    assert len(scalars["loss/generated"]) == 0
    assert len(scalars["loss/triplet"]) == 8
    _, plain = one_step(Labelling(), [REAL] * 8, weight=1.0)
    _, state = one_step(Labelling(generated_weight=0.0, people="lsro"), sources, weight=1.0)
    assert torch.equal(state.network.classifier.weight, plain.network.classifier.weight)


def save_start(path: Path, **changes) -> ReidNetwork:
    torch.manual_seed(5)
    network = ReidNetwork(dataclasses.replace(tiny(Path(), Path()).network(4), **changes))
    names = [f"someone {number}" for number in range(network.config.classes)]
    save_reid(path, network, class_names=names, record={"trained_on": {"real": [{"name": "elsewhere"}]}})
    return network


@pytest.mark.parametrize("separate", [False, True])
def test_a_training_starts_from_any_network_with_new_classes(data, tmp_path, separate):
    network = save_start(tmp_path / "start.safetensors")
    config = tiny(data, tmp_path / "out", start=tmp_path / "start.safetensors", separate_batchnorm=separate)
    config.check()
    state, notes, origin = start(config, 6, CPU, None)
    assert state.network.classifier.weight.shape[0] == 6
    for name, value in state.network.state_dict().items():
        if not name.startswith("classifier."):
            before = network.state_dict()[name.replace(".norms.0.", ".").replace(".norms.1.", ".")]
            assert torch.equal(value, before), name
    assert origin["transferred_from"]["record"] == {"trained_on": {"real": [{"name": "elsewhere"}]}}
    assert len(origin["transferred_from"]["sha256"]) == 64
    assert "start.safetensors" in notes[0]


@pytest.mark.slow
def test_the_record_of_the_start_is_kept_when_a_training_goes_on(data, tmp_path, monkeypatch):
    save_start(tmp_path / "start.safetensors")
    config = tiny(data, tmp_path / "out", start=tmp_path / "start.safetensors", checkpoint_minutes=1e-9)
    stop_before_step(monkeypatch, reid_loop, 2, lambda: run(config))
    (tmp_path / "start.safetensors").unlink()
    run(config)
    record = load_reid(tmp_path / "out" / NETWORK).record
    assert record["transferred_from"]["file"] == "start.safetensors"
    assert record["transferred_from"]["record"] == {"trained_on": {"real": [{"name": "elsewhere"}]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18"}, "--backbone resnet18"),
        ({"width_factor": 0.5}, "--width-factor 0.5"),
        ({"neck": "bnneck"}, "--neck bnneck"),
        ({"embedding": 16}, "--embedding 16"),
        ({"stem": "imagenet"}, "--stem imagenet"),
    ],
)
def test_a_start_of_another_kind_is_refused(data, tmp_path, changes, message):
    save_start(tmp_path / "start.safetensors", **changes)
    config = tiny(data, tmp_path / "out", start=tmp_path / "start.safetensors")
    with pytest.raises(InputError, match=f"give {message}"):
        start(config, 6, CPU, None)


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_half_written_it_goes_on_exactly(data, straight, tmp_path):
    kill_while_it_writes_a_checkpoint("reid", strong(data, tmp_path, checkpoint_minutes=1e-9), 4)
    assert last_checkpoint(tmp_path).name == "000000003"
    run(strong(data, tmp_path))
    check_equal(straight, tmp_path)


def test_a_step_is_that_of_plain_pytorch():
    """Study's recipe: SGD with Nesterov momentum, two rates, cross-entropy with hard labels, no dropout."""
    config = tiny(Path(), Path(), dropout=0.0, lr=0.05, backbone_lr_factor=0.1)
    torch.manual_seed(0)
    ours = ReidNetwork(config.network(5))
    theirs = ReidNetwork(config.network(5))
    theirs.load_state_dict(ours.state_dict())
    optimizer, rates = make_optimizer(config, ours)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = ReidState(ours, optimizer, scaler, rates)
    plain = torch.optim.SGD(
        [{"params": theirs.backbone_parameters(), "lr": 0.005}, {"params": theirs.head_parameters(), "lr": 0.05}],
        momentum=0.9, nesterov=True, weight_decay=5e-4,
    )  # fmt: skip
    random = np.random.default_rng(0)
    for _ in range(3):
        images = torch.from_numpy(random.integers(0, 256, (8, HEIGHT, WIDTH, 3), np.uint8))
        classes = torch.from_numpy(random.integers(0, 5, 8))
        draws = draw(AugmentConfig(flip=0.0, pad=0), 8, HEIGHT, WIDTH, random)
        settings = StepSettings(Labelling(), 0.0, None, False, False, 1.0)
        scalars = train_step(state, settings, Batch(images, classes, torch.zeros(8, dtype=torch.int64), draws), 1.0)
        theirs.train()
        loss = nn.functional.cross_entropy(theirs(images.permute(0, 3, 1, 2) / 255).logits, classes)
        plain.zero_grad()
        loss.backward()
        plain.step()
        assert scalars["loss/real"].mean() == pytest.approx(loss.item(), rel=1e-5)
    for (name, one), two in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6, msg=name)


def one_step(labelling: Labelling, sources, separate=False, weight=0.0, teacher=None, generated_triplet=False):
    torch.manual_seed(1)
    config = ReidTraining(data=Path(), out=Path(), **PRESETS["tiny"] | {"dropout": 0.0, "separate_batchnorm": separate})
    network = ReidNetwork(config.network(4))
    optimizer, rates = make_optimizer(config, network)
    state = ReidState(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), rates)
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (8, HEIGHT, WIDTH, 3), np.uint8))
    draws = draw(AugmentConfig(flip=0.0, pad=0), 8, HEIGHT, WIDTH, random)
    batch = Batch(images, torch.arange(8) % 4, torch.tensor(sources), draws)
    settings = StepSettings(labelling, weight, 0.3, generated_triplet, separate, 1.0)
    return train_step(state, settings, batch, 1.0, teacher), state


def test_generated_images_of_no_weight_leave_only_their_batch_statistics():
    sources = [REAL] * 4 + [VARIANTS] * 4
    _, none = one_step(Labelling(generated_weight=0.0), sources, separate=True)
    _, other = one_step(Labelling(generated_weight=0.0, variants="lsro"), sources, separate=True)
    _, full = one_step(Labelling(generated_weight=1.0), sources, separate=True)
    weights = [state.network.classifier.weight for state in (none, other, full)]
    assert torch.equal(weights[0], weights[1])  # whatever the label says
    assert not torch.equal(weights[0], weights[2])


def test_separate_statistics_of_real_images_do_not_see_generated_ones():
    sources = [REAL] * 4 + [PEOPLE] * 4
    _, state = one_step(Labelling(), sources, separate=True)
    norms = state.network.backbone.bn1.norms
    assert not torch.allclose(norms[0].running_mean, norms[1].running_mean)
    _, mixed = one_step(Labelling(), sources, separate=False)
    both = (norms[0].running_mean + norms[1].running_mean) / 2  # of equally many images
    torch.testing.assert_close(mixed.network.backbone.bn1.running_mean, both)


def test_generated_images_stay_out_of_the_triplet_loss_unless_asked_in():
    sources = [REAL] * 6 + [VARIANTS] * 2  # classes 0 1 2 3 0 1 | 2 3: 2 and 3 have no real partner
    scalars, _ = one_step(Labelling(), sources, weight=1.0)
    assert len(scalars["loss/triplet"]) == 4
    scalars, _ = one_step(Labelling(), sources, weight=1.0, generated_triplet=True)
    assert len(scalars["loss/triplet"]) == 8


WORKERS = """
import sys
from pathlib import Path
import torch, torch.distributed
torch.set_num_threads(1)
sys.path.insert(0, "tests/training/reid")
import test_run as here
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meeting", rank=rank, world_size=2)
torch.save(here.step_on_half(rank, 2), f"{sys.argv[2]}/{rank}.pt")
"""


def step_on_half(rank: int, workers: int) -> dict[str, torch.Tensor]:
    """One step; both halves of the batch hold the same images, so that batch norms see the same in halves and whole."""
    torch.manual_seed(1)
    config = ReidTraining(data=Path(), out=Path(), **PRESETS["tiny"] | {"dropout": 0.0})
    network = ReidNetwork(config.network(4))
    optimizer, rates = make_optimizer(config, network)
    state = ReidState(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), rates)
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (6, HEIGHT, WIDTH, 3), np.uint8)).repeat(2, 1, 1, 1)
    classes = torch.tensor([0, 0, 1, 1, 2, 2] + [3, 1, 2, 0, 0, 3])  # the labels of the halves differ
    draws = draw(AugmentConfig(flip=0.0, pad=0), 12, HEIGHT, WIDTH, random)
    part = slice(rank * 12 // workers, (rank + 1) * 12 // workers)
    batch = Batch(images[part], classes[part], torch.zeros(12, dtype=torch.int64)[part], draws.share(part))
    train_step(state, StepSettings(Labelling(), 0.0, None, False, False, 1.0), batch, 1.0)
    return network.state_dict()


@pytest.mark.slow
def test_two_workers_make_the_step_that_one_makes(tmp_path):
    command = [sys.executable, "-c", WORKERS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT, env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    whole = step_on_half(0, 1)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in whole.items():
        assert torch.equal(halves[0][name], halves[1][name]), name
        # Running variances are unbiased: n / (n - 1) differs between 6 and 12 images where a map is one pixel.
        loose = name.endswith("running_var")
        torch.testing.assert_close(halves[0][name], value, rtol=0.1 if loose else 1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_teacher_labels_and_lsro_train_end_to_end(data, straight, tmp_path):
    run(strong(data, tmp_path / "teacher", people=(), variants=(), steps=2))
    out = tmp_path / "student"
    run(
        strong(
            data, out, variants_labels="teacher", teacher=tmp_path / "teacher" / NETWORK, people_labels="lsro",
            steps=4, ramp_epochs=1.0, real_only_epochs=1.5, separate_batchnorm=True,
        )
    )  # fmt: skip
    loaded = load_reid(out / NETWORK)
    assert len(loaded.class_names) == 6  # nobody's images are no class
    wrong = strong(data, tmp_path / "wrong", variants_labels="teacher", teacher=straight / NETWORK)
    with pytest.raises(InputError, match=r"--teacher .* knows 9 people"):
        run(wrong)


def test_steps_can_be_fixed_and_schedules_stretch(data, tmp_path):
    run(strong(data, tmp_path, steps=5))
    assert load_reid(tmp_path / NETWORK).record["steps"] == 5
    config = preset("study", Path("d"), Path("o"))
    factors = [config.rate_factor(step, 600) for step in (0, 399, 400, 599)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1])
    strong_factors = [
        preset("strong", Path("d"), Path("o")).rate_factor(step, 1200) for step in (0, 50, 100, 399, 400, 700)
    ]
    assert strong_factors == pytest.approx([0.01, 0.505, 1, 1, 0.1, 0.01])


def test_other_options_or_other_images_in_the_same_folder_are_refused(data, tmp_path):
    config = tiny(data, tmp_path, steps=2)
    run(config)
    with pytest.raises(InputError, match="holds a training with --lr 0.05, not 0.5"):
        claim_folder(dataclasses.replace(config, lr=0.5))
    (tmp_path / NETWORK).unlink()
    others = dataclasses.replace(load_data(config), fingerprint="other")
    with pytest.raises(InputError, match="other images than this training began with"):
        train(config, CPU, data=others)
    fewer = dataclasses.replace(others, class_names=others.class_names[:-1], classes=others.classes.clip(0, 4))
    with pytest.raises(InputError, match="knows 6 classes, this training has 5"):
        train(config, CPU, data=dataclasses.replace(fewer, real_classes=5))


def test_divergence_ends_the_training_and_is_never_saved(data, tmp_path):
    with pytest.raises(InputError, match="diverged"):
        run(tiny(data, tmp_path, lr=1e18, backbone_lr_factor=1.0))
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": float("nan")}, "--lr nan: must be a finite number"),
        ({"batch": 9, "workers": 2}, "--batch 9 cannot be split over --workers 2"),
        ({"generated_share": 1.5}, "--generated-share 1.5: must be 0 to 1"),
        ({"variants_labels": "teacher", "variants": (Path("x"),)}, "--variants-labels teacher: give --teacher FILE"),
        ({"real_only_epochs": 9.0}, "--real-only-epochs 9 leaves none"),
        ({"pretrained": True}, "--backbone resnet10 has no ImageNet weights"),
        ({"gpus": 3}, "--gpus 3 with --workers 0"),
    ],
)
def test_bad_options_are_one_clear_line(changes, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        tiny(Path("data"), Path("out"), **changes).check()


def test_presets_are_what_their_sources_say():
    study = preset("study", Path("d"), Path("o"))
    assert (study.backbone, study.batch, study.lr, study.backbone_lr_factor, study.epochs) == (
        "resnet50",
        16,
        0.05,
        0.1,
        60,
    )
    assert study.network(751) == ReidConfig(751, "resnet50", "embedding", 256, 128, 2, 512, "relu", 0.5)
    bag = preset("strong", Path("d"), Path("o"))
    assert (bag.batch // bag.instances, bag.instances, bag.margin, bag.last_stride) == (16, 4, 0.3, 1)
    for name in PRESETS:
        config = preset(name, Path("d"), Path("o"))
        config.check()
        assert ReidTraining.from_json(config.as_json()) == config


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_it_learns_on_a_gpu(data, tmp_path, precision):
    config = strong(data, tmp_path, epochs=8.0, milestones=(7.0,), precision=precision)
    claim_folder(config)
    train(config, torch.device("cuda", 0))
    history = read_history(tmp_path / HISTORY)
    assert history[-1]["loss/real"] < history[0]["loss/real"]


def test_images_that_do_not_fit_are_refused_before_they_are_decoded(data, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 4 * 10**4)
    with pytest.raises(InputError, match="the images take 0.0 GB decoded, and 0.0 GB may be used: give --most-people"):
        run(tiny(data, tmp_path))


def test_save_reid_is_what_load_reid_reads(tmp_path):
    network = ReidNetwork(ReidConfig(3, "resnet10", "bnneck", HEIGHT, WIDTH))
    save_reid(tmp_path / NETWORK, network, class_names=("a", "b", "c"), record={"steps": 1})
    assert load_reid(tmp_path / NETWORK).class_names == ("a", "b", "c")


@pytest.mark.slow
def test_a_backbone_of_timm_learns_stops_and_goes_on_and_its_record_names_the_weights(data, tmp_path):
    theirs = timm.create_model("test_vit", num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    settings = {"backbone": "timm:test_vit", "stem": "imagenet", "neck": "bnneck", "steps": 6}
    settings |= {"pretrained": True, "weights": tmp_path / "w.pth"}
    out = tmp_path / "out"
    assert run(tiny(data, out, **settings, max_minutes=0)) is None
    path = run(tiny(data, out, **settings))
    assert path is not None
    loaded = load_reid(path)
    about = loaded.record["backbone_weights"]
    assert (about["name"], about["source"]) == ("timm:test_vit.r160_in1k", "w.pth")
    assert "apache-2.0" in about["licence"]
    assert (loaded.network.config.mean, loaded.network.config.height) == ((0.5, 0.5, 0.5), HEIGHT)
    straight = run(tiny(data, tmp_path / "straight", **settings))
    check_equal_networks(loaded.network.state_dict(), load_reid(straight).network.state_dict())
    # It starts another training, for images of another size, and its origin stays known.
    more = settings | {"weights": None, "pretrained": False, "start": path, "height": 64}
    started = load_reid(run(tiny(data, tmp_path / "started", **more)))
    assert started.record["backbone_weights"] == about
    assert started.network.config.mean == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_parts_of_a_started_network_that_no_option_names_stay(data, tmp_path):
    config = ReidConfig(3, "resnet10", "bnneck", 32, 16, stem="fastreid", pooling="gem", neck_feature="before")
    save_reid(tmp_path / "a.safetensors", ReidNetwork(config), class_names=list("abc"), record={})
    settings = {"neck": "bnneck", "stem": "fastreid", "start": tmp_path / "a.safetensors", "steps": 2}
    assert run(tiny(data, tmp_path / "out", **settings, max_minutes=0)) is None
    made = load_reid(run(tiny(data, tmp_path / "out", **settings))).network.config
    assert (made.stem, made.pooling, made.neck_feature) == ("fastreid", "gem", "before")
