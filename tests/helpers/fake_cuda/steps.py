"""Every step of the project on fake CUDA tensors: `python -m tests.helpers.fake_cuda.steps LIBRARY [STEP ...]`.

Prints a line of JSON for each step: its name, the waits of its second run (the first run sends constants to the device,
once), and the dtype and device of each result.
"""

import ctypes
import dataclasses
import functools
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

# PyTorch must not be loaded before the library, so every import of the project is inside a function.
Step = Callable[[], dict]
HEIGHT, WIDTH = 32, 16


def gan(**options) -> Step:
    """An iteration of a GAN training with all lazy parts, and its inputs as the training makes them."""
    import numpy as np

    from tests.helpers.fake_cuda.device import GPU
    from training.gan.config import GanTraining
    from training.gan.data import Batches, Feeder, InMemory, Order, PairOrder
    from training.gan.start import start
    from training.gan.step import train_iteration

    values = {"height": HEIGHT, "width": WIDTH, "channel_base": 256, "channel_max": 12, "batch": 8, "workers": 0}
    values |= {"augment": "fixed", "augment_p": 0.5, "mapping_layers": 2}
    config = GanTraining(data=Path("data"), out=Path("no-such-folder"), **values | options)
    whole = GanTraining.generator
    with mock.patch.object(GanTraining, "generator", lambda *arguments: _shortened(whole(*arguments))):
        state = start(config, GPU, 3 if config.condition != "none" else 0).state
    images = np.zeros((16, HEIGHT, WIDTH, 3), np.uint8)
    labels = np.eye(3, dtype=np.float32)[np.arange(16) % 3] if config.condition != "none" else None
    reader = InMemory(images)
    pairs = (PairOrder(_pairs(16), config.batch, 0), reader) if config.pairs else (None, None)
    batches = Batches(reader, Order(16, 0), config, 0, 1, labels, *pairs)
    feeder = Feeder(batches, state.generator.z_dim, state.generator.num_ws, GPU, ahead=False)

    def run() -> dict:
        state.step = 0  # an iteration with all lazy parts
        pairs_ada = state.pairs.ada if state.pairs else None
        inputs = feeder.inputs(state.images_seen, state.ada, pairs_ada, state.step)
        return train_iteration(state, config.step_settings(), inputs)

    return run


def _shortened(config):
    """A StyleGAN3 with fewer layers; a StyleGAN2 as it is."""
    return dataclasses.replace(config, num_layers=5) if hasattr(config, "num_layers") else config


def _pairs(count: int):
    import numpy as np

    from datasets.people.listing import Listing
    from training.gan.pairs import RealPairs

    names = [f"{index}.png" for index in range(count)]
    identities, cameras = np.arange(count) // 4, np.arange(count) % 2
    listing = Listing("pairs", tuple(map(Path, names)), identities, cameras, tuple(names), {})
    return RealPairs(listing, range(count // 4))


def reid(**options) -> Step:
    """A step of a re-ID training, with its images as the training sends them."""
    import numpy as np
    import torch

    from datasets.reid.training_set import PEOPLE, REAL
    from tests.helpers.fake_cuda.device import GPU
    from training.reid.config import ReidTraining
    from training.reid.data import Feeder
    from training.reid.presets import PRESETS
    from training.reid.run import StepSettings
    from training.reid.start import autocast_type, make_stages, start
    from training.reid.step import train_step

    values = PRESETS["strong-small"] | {"height": HEIGHT, "width": WIDTH, "batch": 8, "sampler": "shuffle", "steps": 10}
    values |= {"generated_share": 0.5, "width_factor": 0.25}
    config = ReidTraining(data=Path("data"), out=Path("no-such-folder"), **values | options)
    classes = np.arange(40) % 5
    sources = np.where(np.arange(40) < 20, REAL, PEOPLE)
    images = np.zeros((40, HEIGHT, WIDTH, 3), np.uint8)
    data = _training_images(images, classes, sources)
    dtype = autocast_type(config.precision, GPU)
    state = start(config, 5, GPU, dtype)[0]
    feeder = Feeder(data, config, make_stages(config, classes, sources, 10), GPU)
    settings = StepSettings(
        config.labelling(10), config.triplet_weight, config.margin, config.generated_triplet, config.separate_batchnorm,
        config.temperature, dtype,
    )  # fmt: skip
    steps = iter(range(10))

    def run() -> dict:
        torch.manual_seed(0)
        return train_step(state, settings, feeder.batch(next(steps)), 1.0)

    return run


def _training_images(images, classes, sources):
    import types

    return types.SimpleNamespace(images=images, classes=classes, sources=sources, donors=images)


def _generator(device=None):
    from passersby.stylegan3 import Generator, GeneratorConfig
    from tests.helpers.fake_cuda.device import GPU

    config = GeneratorConfig.config_t(HEIGHT, WIDTH, channel_base=256, channel_max=12, num_layers=5)
    return Generator(config).eval().requires_grad_(False).to(device or GPU)


def _losses():
    from passersby.perception.perceptual import load_perceptual
    from passersby.reid.identity_features import IdentityFeatures
    from passersby.reid.network import ReidConfig, ReidNetwork
    from passersby.restyle.losses import InversionLoss, LossWeights
    from tests.helpers.fake_cuda.device import GPU

    network = ReidNetwork(ReidConfig(5, backbone="resnet10", stem="small", height=HEIGHT, width=WIDTH))
    identity = IdentityFeatures(network, (HEIGHT, WIDTH), "tiny", "0")
    return InversionLoss(LossWeights(), load_perceptual(), identity).requires_grad_(False).eval().to(GPU)


def pivotal() -> Step:
    """Pivotal tuning of three pictures in two steps."""
    import torch

    from passersby.restyle.pivotal import tune
    from tests.helpers.fake_cuda.device import GPU

    generator, loss = _generator(), _losses()
    target = loss.target(torch.zeros(3, 3, HEIGHT, WIDTH, device=GPU))
    pivots = generator.mapping.w_avg.expand(3, generator.num_ws, -1).clone()
    return lambda: {name: up for name, (up, _) in tune(generator, loss, target, pivots, 2, batch=2).factors.items()}


def refinement() -> Step:
    """Two steps of refinement of three pictures."""
    import torch

    from passersby.restyle.refinement import refine
    from tests.helpers.fake_cuda.device import GPU

    generator, loss = _generator(), _losses()
    target = loss.target(torch.zeros(3, 3, HEIGHT, WIDTH, device=GPU))
    average = generator.mapping.w_avg.expand(generator.num_ws, -1).clone()
    codes = average.expand(3, -1, -1).clone()
    return lambda: {"codes": refine(generator.synthesis, loss, target, codes, 2, average=average)}


def encoder() -> Step:
    """A step of an encoder training, with its images as the training sends them."""
    import numpy as np
    import torch

    from tests.helpers.fake_cuda.device import GPU
    from training.encoder.config import EncoderTraining
    from training.encoder.presets import PRESETS
    from training.encoder.start import start
    from training.encoder.step import Frozen, train_step
    from training.encoder.validation import Feeder

    values = PRESETS["tiny"] | {"width_factor": 0.1, "head_channels": 16, "height": HEIGHT, "width": WIDTH, "batch": 4}
    values |= {"generated_share": 0.5, "refinements": 2}
    config = EncoderTraining(data=Path("data"), out=Path("no-such-folder"), **values)
    generator, loss = _generator(), _losses()
    average = generator.mapping.w_avg.expand(generator.num_ws, -1).clone()
    frozen = Frozen(generator, loss, loss, average, 1.0, torch.zeros(3, HEIGHT, WIDTH, device=GPU))
    state, _ = start(config, generator.config, GPU)
    images = _training_images(np.zeros((8, HEIGHT, WIDTH, 3), np.uint8), None, None)
    feeder = Feeder(images, config, generator, GPU)
    return lambda: train_step(state, frozen, feeder.batch(state.step), 2, 1.0, 1e-3)


def generation() -> Step:
    """A unit of three people, whose images share chunks."""
    import pyarrow as pa

    from actors.style_mixer import StyleMixer
    from datasets.runs.configuration import RECIPE, Configuration

    configuration = Configuration(
        seed=1, variants=4, method="mix", layers=(2, 3), amount=None, truncation_psi=0.7, network="n", height=HEIGHT,
        width=WIDTH, format="jpeg", jpeg_quality=95, unit_images=512, detector="d", reference_threshold=0.6,
        ssim_data_range=4095.0, recipe=RECIPE,
    )  # fmt: skip
    mixer = StyleMixer(_generator(), configuration, "cuda")
    made = []
    mixer._encode = lambda image: made.append(image) or b""
    return lambda: mixer(pa.table({"unit": [0], "first_person": [0], "people": [3]})) and {}


def detector() -> Step:
    """The pedestrian filter's scores of two images, and its boxes."""
    import numpy as np
    import torch

    from passersby import weights
    from passersby.yolo.pedestrian_filter import PedestrianFilter, person_scores

    with mock.patch.object(torch.cuda, "is_available", return_value=True):
        found = PedestrianFilter(weights.get("yolov4-tiny"), 128, 64, device="cuda")
    images = np.zeros((2, 128, 64, 3), np.uint8)
    return lambda: {"scores": person_scores(found.logits(images)), "boxes": found.decoded(images)}


def similarity() -> Step:
    """SSIM of a reference and four images."""
    import torch

    from passersby.metrics.ssim import ssim
    from tests.helpers.fake_cuda.device import GPU

    images = torch.zeros(4, HEIGHT, WIDTH, 3, dtype=torch.uint8, device=GPU)
    return lambda: {"ssim": ssim(images[:1], images, 4095.0)}


def inception() -> Step:
    """Features of two images for FID."""
    import numpy as np
    import torch

    from passersby.perception.inception import Inception, inception_network
    from tests.helpers.fake_cuda.device import GPU

    with torch.device("meta"):
        network = inception_network()
    features = Inception(network.to_empty(device="cpu").eval(), "0", GPU)
    return lambda: features(np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)) is not None and {}


def ranking() -> Step:
    """Ranking and re-ranking of features on the device."""
    import numpy as np
    import torch

    from passersby.metrics.ranking import evaluate_ranking
    from passersby.metrics.reranking import k_reciprocal_distances
    from tests.helpers.fake_cuda.device import GPU

    # Of 21 images each is among the nearest 21 of each, whatever the values.
    queries, gallery = torch.zeros(4, 8, device=GPU), torch.zeros(17, 8, device=GPU)
    identities, cameras = np.arange(17) % 4 + 1, np.arange(17) % 3

    def run() -> dict:
        evaluate_ranking(queries, gallery, identities[:4], identities, cameras[:4], cameras)
        list(k_reciprocal_distances(queries, gallery))
        return {}

    return run


def all_waits() -> Step:
    """A step with a wait of each kind."""
    import torch

    from tests.helpers.fake_cuda.device import GPU

    values = torch.zeros(4, device=GPU)

    def run() -> dict:
        values.sum().item()
        values.cpu()
        torch.zeros(4).to(GPU, non_blocking=True)
        torch.zeros(4).pin_memory().to(GPU)
        values.nonzero()
        values[values > 0]
        values[torch.tensor([0, 1])]
        torch.cuda.synchronize()
        return {"values": values}

    return run


STEPS: dict[str, Callable[[], Step]] = {
    "gan t": functools.partial(gan, config="t", augment_set="bgcfnc"),
    "gan r, two rounds, labels": functools.partial(gan, config="r", batch_gpu=4, condition="camera"),
    "gan 2, two rounds": functools.partial(gan, config="2", batch_gpu=4, precision="bfloat16"),
    "gan 2, pairs, one pass": functools.partial(gan, config="2", pairs=True, one_pass=True, intraclass_weight=1.0),
    "reid": reid,
    "reid, separate statistics": functools.partial(reid, separate_batchnorm=True),
    "reid, float16": functools.partial(reid, precision="float16"),
    "reid, changes": functools.partial(reid, surroundings=1.0, colours=0.7, jitter=0.7, precision="float32"),
    "pivotal tuning": pivotal,
    "refinement": refinement,
    "encoder": encoder,
    "generation": generation,
    "detector": detector,
    "similarity": similarity,
    "inception": inception,
    "ranking": ranking,
    "all waits": all_waits,
}


def main(library: str | None, *names: str) -> None:
    """Run these steps, by default all. library: that of `shim.cpp`, None if it is loaded."""
    if library:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    import torch

    from tests.helpers.fake_cuda.device import fake_gpu

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in names or STEPS:
        clock, record = time.process_time(), {"step": name}
        with fake_gpu() as census:
            try:
                run = STEPS[name]()
                run()
                census.waits.clear()
                census.operations.clear()
                results = run()
                record["results"] = {
                    name: [str(part.dtype), part.device.type]
                    for name, value in results.items()
                    for part in ((value,) if isinstance(value, torch.Tensor) else value)
                }
            except Exception:  # noqa: BLE001 (the test shows it)
                record["error"] = traceback.format_exc()
        record |= {"waits": dict(census.waits), "operations": dict(census.operations)}
        print(json.dumps(record | {"seconds": time.process_time() - clock}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
