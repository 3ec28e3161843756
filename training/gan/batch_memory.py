"""How many images of a GAN training a GPU computes at a time: as many as its memory has room for, by calculation."""

from torch import nn

from passersby import stylegan2
from passersby.stylegan3 import DiscriminatorConfig, GeneratorConfig
from passersby.stylegan3.ops.filtered_lrelu import FilterPlan
from training.gan.config import MINIBATCH_GROUP, GanTraining
from training.gan.step import TrainingState

SHARE = 0.9  # of a GPU's free memory; its allocator loses the rest to gaps between tensors
CONTEXT = 1e9  # bytes of cuDNN's and cuBLAS's workspaces
# Maps of a layer beside those that a backward pass needs: both gradients of its largest map and a part of a filter.
TEMPORARY = 3


def possible_parts(config: GanTraining) -> list[int]:
    """The numbers of images that --batch-gpu can give, the largest first: of a worker's whole share of the batch."""
    share = config.batch // max(config.workers, 1)
    multiple = 2 * MINIBATCH_GROUP if config.pairs else 1
    parts = (part for part in range(share, 0, -1) if share % part == 0 and part % multiple == 0)
    return [part for part in parts if part % min(MINIBATCH_GROUP, part) == 0]


def images_at_once(config: GanTraining, free: float) -> int:
    """The largest possible part of a worker's share that fits into so many bytes of a GPU; else the smallest part.

    free: without the `optimizer_bytes` that the training will need. With --one-pass it is the whole share, because
    parts would save nothing.
    """
    parts = possible_parts(config)
    if config.batch_gpu or config.one_pass or not parts:
        return config.batch_gpu or config.batch // max(config.workers, 1)
    room, each = SHARE * free - CONTEXT, image_bytes(config)
    return next((part for part in parts if part * each <= room), parts[-1])


def optimizer_bytes(state: TrainingState) -> float:
    """Bytes that the first iteration adds for each parameter: its gradient and Adam's two averages."""
    networks: list[nn.Module] = [state.generator, state.discriminator]
    if state.pairs:
        networks.append(state.pairs.discriminator)
    if state.projected:
        networks.append(state.projected.discriminator.heads)
    return 3 * sum(map(_parameter_bytes, networks))


def _parameter_bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def image_bytes(config: GanTraining) -> float:
    """Bytes that the generator's phase of an iteration needs for each image, the discriminator's part included.

    They are the maps that a backward pass needs, and the temporary ones of the largest layer.
    """
    short = 4 if config.precision == "float32" else 2
    generator = config.generator()
    if isinstance(generator, stylegan2.GeneratorConfig):
        of_generator = _stylegan2(generator, short)
    else:
        of_generator = _stylegan3(config, generator, short)
    discriminators = _discriminator(config.discriminator(), short) * (2 if config.pairs else 1)
    lazy = 3 if config.path_length else 1  # a second derivative keeps the first one's maps
    return lazy * of_generator + discriminators


def _stylegan3(config: GanTraining, generator: GeneratorConfig, short: int) -> float:
    fused = config.kernel == "triton"  # it computes the largest maps again in the backward pass
    saved, largest = 0.0, 0.0
    for layer in generator.layers()[:-1]:
        size = short if layer.rate_is_high(generator.height, generator.num_fp16_res) else 4
        (height, width), extra = layer.in_size, layer.kernel - 1
        before = layer.in_channels * height * width * size
        after = layer.out_channels * (height + extra) * (width + extra) * size
        plan = FilterPlan.of_layer(layer, generator.conv_clamp)
        filtered = layer.out_channels * plan.size[0] * plan.size[1] * size
        saved += before * (2 if extra else 1) + after + (0 if fused else filtered)
        largest = max(largest, filtered)
    return saved + TEMPORARY * (largest / 4 if fused else largest)


def _stylegan2(generator: stylegan2.GeneratorConfig, short: int) -> float:
    maps = [
        generator.channels(height)
        * height
        * (height * generator.width // generator.height)
        * (short if generator.half_on_cuda(height) else 4)
        for height in generator.heights
    ]
    # Of each of two convolutions the scaled input, the output before and after the noise, and the up-sampled map.
    return 8 * sum(maps) + TEMPORARY * max(maps)


def _discriminator(config: DiscriminatorConfig, short: int) -> float:
    maps = [
        config.channels(height) * height * (height * config.width // config.height)
        * (short if config.half_on_cuda(height) else 4)
        for height in config.heights[:-1]
    ]  # fmt: skip
    # Of a block its input, the outputs of two convolutions and two filters; R1's second derivative keeps them thrice.
    return 15 * sum(maps)
