"""Transfer of discriminators between resolutions, shapes, widths and label dimensions."""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

from passersby.errors import InputError
from passersby.stylegan3.discriminator import Conv, Discriminator, Epilogue, ResidualBlock
from passersby.stylegan3.transfer.channels import (
    Channels,
    changes,
    fan_in_gain,
    fit_into,
    joined,
    put_rows,
    transfer_mapping,
)
from passersby.stylegan3.transfer.report import Ledger

# ---- A new first layer, fitted to what the layers that it replaces make of colours.

IMAGES = 64
RECTANGLES = 60
GREY = 0.7  # the share of grey in the colours of rectangles
NEWTON_STEPS = 10


def dead_leaves(height: int, width: int, count: int) -> torch.Tensor:
    """[count, 3, height, width] float32, -1..1: overlapping rectangles of all sizes and colours, always the same.

    Such "dead leaves" have the edges, flat parts and spectrum of pictures. They are needed because a network file holds
    no pictures.
    """
    random = np.random.default_rng(0)
    images = np.empty((count, height, width, 3), np.float32)
    for image in images:
        image[:] = _colour(random)
        for _ in range(RECTANGLES):
            side = height * random.uniform(0.03, 0.5)
            top, left = random.uniform(-0.2, 1, 2) * (height, width)
            bottom, right = top + side * random.uniform(0.4, 2.5), left + side
            area = (slice(max(int(top), 0), max(int(bottom), 0)), slice(max(int(left), 0), max(int(right), 0)))
            image[area] = _colour(random)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _colour(random: np.random.Generator) -> np.ndarray:
    colour = random.uniform(-1, 1, 3)
    return (GREY * math.sqrt(3) * colour.mean() + (1 - GREY) * colour) * random.uniform(0.2, 1)


def fit_fromrgb(source: Discriminator, height: int, images: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored weight [C, 3, 1, 1] and bias [C] of a fromrgb that replaces all layers of `source` above a block.

    The block is that of `height`. The fromrgb is a leaky ReLU of a linear function of the colour, fitted to the block's
    input by least squares. On people (64 x 32 -> 32 x 16) the scores then correlate with the source's by 0.63 if the
    fit is on pictures of people (`images` [N, 3, h, w], -1..1), and by 0.33 if it is on dead leaves. With a new fromrgb
    it is 0.18, with the source's own -0.20.
    """
    config = source.config
    factor = config.height // height
    device = next(source.parameters()).device
    if images is None:
        # The blocks above work at any size, so a part of an image is enough.
        images = dead_leaves(min(config.height, 16 * factor), min(config.width, 16 * factor), IMAGES)
    else:
        size = (config.height, max(config.height * images.shape[3] // images.shape[2], factor))
        images = resized(images, (size[0], size[1] // factor * factor))
    images = images.to(device)
    with torch.no_grad():
        maps = [_above(source, height, part) for part in images.split(4)]
    outputs = torch.cat(maps).float().permute(0, 2, 3, 1).flatten(0, 2)  # [pixels, C]
    pixels = F.avg_pool2d(images, factor).permute(0, 2, 3, 1).flatten(0, 2)
    pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)  # [pixels, 4]: colour and 1
    solution = _fit_leaky(pixels, outputs)  # [4, C]
    gain = 1 / math.sqrt(config.img_channels)
    return (solution[:-1].t() / gain)[:, :, None, None], solution[-1]


def resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize images [N, 3, h, w] without aliasing."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True)


def _above(source: Discriminator, height: int, x: torch.Tensor) -> torch.Tensor:
    for block_height in source.heights[: source.heights.index(height)]:
        x = getattr(source, f"b{block_height}")(x)
    return x


def _fit_leaky(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    # Coefficients [4, C] of outputs [n, C] ~ sqrt(2) * leaky ReLU(inputs [n, 4] @ coefficients): a linear fit of the
    # activation's inverse, then Gauss-Newton steps, which minimise the error of the output.
    inverse = outputs / math.sqrt(2)
    fit = torch.linalg.lstsq(inputs, torch.where(inverse < 0, inverse / 0.2, inverse)).solution
    ridge = 1e-3 * len(inputs) * torch.eye(inputs.shape[1], device=inputs.device)
    for _ in range(NEWTON_STEPS):
        before = inputs @ fit
        slope = torch.where(before < 0, 0.2, 1.0) * math.sqrt(2)
        gram = torch.einsum("ni,nc,nj->cij", inputs, slope.square(), inputs) + ridge
        gradient = torch.einsum("ni,nc->ci", inputs, slope * (outputs - before * slope))
        fit = fit + torch.linalg.solve(gram, gradient[..., None])[..., 0].t()
    return fit


def colour_grid(device: torch.device) -> torch.Tensor:
    """[125, 3] float32: all colours with each value among -1, -0.5, .. 1."""
    levels = torch.linspace(-1, 1, 5, device=device)
    return torch.cartesian_prod(levels, levels, levels)


def features_of_colours(network: Discriminator, height: int) -> torch.Tensor:
    """[125, C]: the input of the block of `height` where the image is flat, for every colour of the grid.

    The main branches of the blocks above must give 0. The source's first block has no blocks above.
    """
    with torch.no_grad():
        top = getattr(network, f"b{network.heights[0]}")
        x = top.fromrgb(colour_grid(top.fromrgb.weight.device)[:, :, None, None])[:, :, 0, 0]
        for block_height in network.heights[: network.heights.index(height)]:
            skip = getattr(network, f"b{block_height}").skip
            x = x @ skip.weight[:, :, 0, 0].t() * (skip.weight_gain * math.sqrt(0.5))
    return x


# ---- The whole discriminator.


def transfer_discriminator(
    source: Discriminator, target: Discriminator, ledger: Ledger, images: torch.Tensor | None
) -> None:
    """Transfer block by block; blocks of the same height match.

    Blocks of one height see maps with the same number of channels and, where one image is a part of the other, of the
    same scale. For networks of one shape this is also the order from the epilogue. Between a square and a tall network
    that order would match maps that do not fit, and the scores followed the source's no better (correlation 0.47 by
    height, 0.43 by order, on people of 64 x 32 whose edges were extended to 64 x 64).
    """
    _check(source, target)
    channels = Channels(_widths(source), lambda: _importance(source, images))
    _Transfer(source, target, channels, ledger, images).run()


def _check(source: Discriminator, target: Discriminator) -> None:
    old, new = source.config.img_channels, target.config.img_channels
    if old != new:
        raise InputError(f"transfer: a discriminator of {old} image channels for {new}: build the new one with {old}")
    if not set(source.heights[:-1]) & set(target.heights[:-1]):
        sizes = [f"{c.height} x {c.width}" for c in (source.config, target.config)]
        raise InputError(
            f"transfer: no block of the {sizes[0]} discriminator has a height that one of the {sizes[1]} has: "
            "start from a network of nearer size"
        )


def _widths(network: Discriminator) -> dict:
    """The channels of every map, by its key.

    Key `height` is the input of that block, (height, "mid") the output of its first convolution, "conv" the output of
    the epilogue's convolution, and "fc" that of its first linear layer.
    """
    widths = {}
    for height in network.heights[:-1]:
        weight = getattr(network, f"b{height}").conv0.weight
        widths |= {height: weight.shape[1], (height, "mid"): weight.shape[0]}
    epilogue = getattr(network, f"b{network.heights[-1]}")
    last = epilogue.conv.weight.shape[1] - epilogue.num_channels
    widths[network.heights[-1]] = last
    return widths | {"conv": epilogue.conv.weight.shape[0], "fc": epilogue.fc.weight.shape[0]}


@dataclasses.dataclass
class _Transfer:
    source: Discriminator
    target: Discriminator
    channels: Channels
    ledger: Ledger
    images: torch.Tensor | None

    def __post_init__(self):
        self.widths = _widths(self.target)

    def run(self) -> None:
        """Transfer all blocks, from the image on, then the epilogue and the labels."""
        first, last = self.source.heights[0], self.source.heights[-1]
        self._transfer_fromrgb()
        for height in self.target.heights[:-1]:
            if height > first:
                self._pass_colours(height)
            elif height > last:
                self._transfer_block(height)
            else:
                self._pass_on(height)
        self._transfer_epilogue()
        self._transfer_labels()

    def _keep(self, source_map, target_map):
        # The channels of the source's map that the target's map keeps.
        return self.channels.keep(source_map, self.widths[target_map])

    def _transfer_fromrgb(self) -> None:
        first, top = self.source.heights[0], self.target.heights[0]
        old, name = getattr(self.source, f"b{first}").fromrgb, f"b{top}.fromrgb"
        if top >= first:
            keep = self._keep(first, top)
            put_rows(self.ledger, f"{name}.weight", old.weight.detach(), keep)
            put_rows(self.ledger, f"{name}.bias", old.bias.detach(), keep)
            return
        # The source has more blocks above the target's first one: a single layer replaces them.
        weight, bias = fit_fromrgb(self.source, top, self.images)  # stored, [C, 3, 1, 1] and [C]
        keep, how = self._keep(top, top), f"stands for blocks {first}..{top * 2} of the source"
        for part, values in (("weight", weight[keep]), ("bias", bias[keep])):
            value = self.ledger.tensor(f"{name}.{part}").to(values.device, copy=True)
            value[: len(values)] = values
            self.ledger.put(f"{name}.{part}", value, None, how, values.numel())

    def _transfer_block(self, height: int) -> None:
        old, name = getattr(self.source, f"b{height}"), f"b{height}"
        maps = {
            "conv0": (height, (height, "mid")),
            "conv1": ((height, "mid"), height // 2),
            "skip": (height, height // 2),
        }
        for part, (reads, writes) in maps.items():
            self._put_conv(getattr(old, part), f"{name}.{part}", self._keep(reads, reads), self._keep(writes, writes))

    def _put_conv(self, conv: Conv, name: str, inputs, outputs) -> None:
        weight, target = conv.weight.detach(), self.ledger.tensor(f"{name}.weight")
        gain = fan_in_gain(weight.shape[1], target.shape[1])
        kernels = weight[outputs][:, inputs] * gain
        how = joined(
            changes(weight.shape[1], target.shape[1], "inputs"),
            changes(weight.shape[0], target.shape[0], "outputs"),
            "" if gain == 1 else f"x {gain:.3f}",
        )
        self.ledger.put(f"{name}.weight", fit_into(target, kernels, weight), weight, how, kernels.numel())
        if conv.bias is not None:
            put_rows(self.ledger, f"{name}.bias", conv.bias.detach(), outputs)

    def _pass_colours(self, height: int) -> None:
        """Fit a block above the source's first block: it gives, at half the size, what the source's fromrgb gave.

        The block's side branch is linear, and has many channels for few colours, so a fit by least squares over a grid
        of colours is close. The scores of a 128 x 64 target correlate with those of the 64 x 32 source by 0.91; with a
        new block, by 0.18.
        """
        name, block = f"b{height}", getattr(self.target, f"b{height}")
        first = self.source.heights[0]
        target_features = features_of_colours(self.target, height)  # [colours, C]
        source_features = features_of_colours(self.source, first)[:, self._keep(first, height // 2)]
        fit = torch.linalg.pinv(target_features.double(), rtol=1e-4) @ source_features.double()
        kernels = (fit.t().float() / (block.skip.weight_gain * math.sqrt(0.5)))[:, :, None, None]
        how = "hands on the colours that the source's fromrgb gave"
        self.ledger.put(
            f"{name}.skip.weight", fit_into(block.skip.weight.detach(), kernels, kernels), None, how, kernels.numel()
        )
        self._silence(block, name)

    def _pass_on(self, height: int) -> None:
        # This block is below the source's last: every channel goes to the same channel, at half the size.
        name, block = f"b{height}", getattr(self.target, f"b{height}")
        last = self.source.heights[-1]
        inputs, outputs = self._keep(last, height), self._keep(last, height // 2)
        kernels = (outputs[:, None] == inputs[None]).float() / (block.skip.weight_gain * math.sqrt(0.5))
        kernels = kernels[:, :, None, None].to(block.skip.weight.device)
        value = fit_into(block.skip.weight.detach(), kernels, kernels)
        self.ledger.new(f"{name}.skip.weight", "passes on what it gets", value)
        self._silence(block, name)

    def _silence(self, block: ResidualBlock, name: str) -> None:
        # The main branch of a block that passes its input on starts at 0, as residual branches often do.
        for part in ("weight", "bias"):
            self.ledger.new(f"{name}.conv0.{part}", "")
            self.ledger.new(f"{name}.conv1.{part}", "starts at 0", torch.zeros_like(getattr(block.conv1, part)))

    def _transfer_epilogue(self) -> None:
        last, end = self.source.heights[-1], self.target.heights[-1]
        old, new, name = getattr(self.source, f"b{last}"), getattr(self.target, f"b{end}"), f"b{end}"
        conv, widths = old.conv.weight.detach(), (self.channels.widths[last], self.widths[end])
        # The maps of the minibatch deviation come after the other channels.
        extra = min(old.num_channels, new.num_channels)
        inputs, outputs = self._keep(last, end), self._keep("conv", "conv")
        gain = fan_in_gain(conv.shape[1], new.conv.weight.shape[1])
        rows = conv[outputs] * gain
        kernels = rows.new_zeros(len(rows), new.conv.weight.shape[1], *conv.shape[2:])
        kernels[:, : len(inputs)] = rows[:, inputs]
        kernels[:, widths[1] : widths[1] + extra] = rows[:, widths[0] : widths[0] + extra]
        how = joined(changes(*widths, "inputs"), changes(len(conv), len(new.conv.weight), "outputs"))
        value = fit_into(new.conv.weight.detach(), kernels, kernels)
        sourced = len(rows) * (len(inputs) + extra) * 9
        self.ledger.put(f"{name}.conv.weight", value, conv, how or f"x {gain:.3f}", sourced)
        put_rows(self.ledger, f"{name}.conv.bias", old.conv.bias.detach(), outputs)
        self._transfer_linear(old, new, name)

    def _transfer_linear(self, old: Epilogue, new: Epilogue, name: str) -> None:
        weight = old.fc.weight.detach()
        inputs, outputs = self._keep("conv", "conv"), self._keep("fc", "fc")
        matrix = weight.view(len(weight), -1, *old.size)[outputs][:, inputs]
        gain = fan_in_gain(weight.shape[1], new.fc.weight.shape[1])
        # A map of another size counts as the same map, stretched. The weights of a row are divided among the rows at
        # its position, or those of several rows are summed. With the gain of the fan-in, independent inputs also keep
        # their variance.
        how = ""
        for axis, noun, before, after in zip((2, 3), ("rows", "columns"), old.size, new.size, strict=True):
            if after > before:
                matrix = matrix.repeat_interleave(after // before, axis) / (after // before)
            elif after < before:
                matrix = matrix.unflatten(axis, (after, before // after)).sum(axis + 1)
            how = joined(how, "" if after == before else f"{before} {noun} of map -> {after}")
        sourced = matrix.numel()
        target = new.fc.weight.detach().view(len(new.fc.weight), -1, *new.size)
        value = fit_into(target, matrix * gain, matrix).flatten(1)
        how = joined(
            how,
            changes(self.channels.widths["conv"], self.widths["conv"], "inputs"),
            changes(len(weight), len(new.fc.weight), "outputs"),
        )
        self.ledger.put(f"{name}.fc.weight", value, weight, how, sourced)
        put_rows(self.ledger, f"{name}.fc.bias", old.fc.bias.detach(), outputs)

    def _transfer_labels(self) -> None:
        """Transfer the last linear layer and the mapping network of labels."""
        old = getattr(self.source, f"b{self.source.heights[-1]}").out
        name = f"b{self.target.heights[-1]}.out"
        new = getattr(self.target, f"b{self.target.heights[-1]}").out
        conditional = [network.config.c_dim > 0 for network in (self.source, self.target)]
        weight, bias, how = old.weight.detach(), old.bias.detach(), ""
        if conditional == [True, False]:
            direction = self._average_direction()
            weight, bias, how = direction @ weight, direction @ bias, "projected on the average label"
        elif len(weight) != len(new.weight) or not conditional[0] and conditional[1]:
            how = f"{len(weight)} -> {len(new.weight)} features for labels"
            for tensor in self._label_tensors(name):
                self.ledger.new(tensor, how)
            return
        keep = self._keep("fc", "fc")
        matrix = weight[:, keep] * fan_in_gain(weight.shape[1], new.weight.shape[1])
        how = joined(how, changes(weight.shape[1], new.weight.shape[1], "inputs"))
        value = fit_into(new.weight.detach(), matrix, matrix)
        self.ledger.put(f"{name}.weight", value, old.weight.detach(), how, matrix.numel())
        self.ledger.put(f"{name}.bias", bias, old.bias.detach(), how)
        if conditional[1]:
            transfer_mapping(self.source.mapping, self.target.mapping, self.ledger)

    def _label_tensors(self, out: str) -> list[str]:
        mapping = [f"mapping.{name}" for name, _ in self.target.mapping.named_parameters()]
        return [f"{out}.weight", f"{out}.bias", *mapping]

    def _average_direction(self) -> torch.Tensor:
        # [1, cmap_dim]: the factors of the features, averaged over all labels
        labels = torch.eye(self.source.config.c_dim, device=next(self.source.parameters()).device)
        with torch.no_grad():
            embeddings = self.source.mapping(None, labels)
        return embeddings.mean(0, keepdim=True) / math.sqrt(embeddings.shape[1])


def _importance(source: Discriminator, images: torch.Tensor | None) -> dict:
    """The importance of each channel of each map: its mean square on images times the squares of its weights.

    The weights are those of the layers that read the map. Without `images` the function takes dead leaves.
    """
    importance: dict = {}
    readers = {}
    for height in source.heights[:-1]:
        block = getattr(source, f"b{height}")
        readers |= {block.conv0: height, block.skip: height, block.conv1: (height, "mid")}
    epilogue = getattr(source, f"b{source.heights[-1]}")
    readers |= {epilogue.conv: source.heights[-1], epilogue.fc: "conv", epilogue.out: "fc"}
    widths = _widths(source)

    def note(module, inputs) -> None:
        x, key = inputs[0].detach().float(), readers[module]
        n, width = widths[key], module.weight.shape[1]
        if x.ndim == 4:  # [N, C (+ minibatch deviation), h, w]
            power, weight_power = x.square().mean((0, 2, 3)), module.weight.square().sum((0, 2, 3)) / width
        else:  # [N, C * positions]
            power = x.square().mean(0)
            weight_power = module.weight.square().sum(0) / width
            power, weight_power = (power * weight_power).view(n, -1).sum(1), torch.ones(n, device=x.device)
        importance[key] = importance.get(key, 0) + (power * weight_power)[:n]

    hooks = [module.register_forward_pre_hook(note) for module in readers]
    try:
        device = next(source.parameters()).device
        group = source.config.mbstd_group_size or 4
        size = (source.config.height, source.config.width)
        if images is None or len(images) < group:
            images = dead_leaves(*size, 4 * group)
        for part in images[: len(images) // group * group].split(group):
            label = torch.zeros(group, source.config.c_dim, device=device)
            with torch.no_grad():
                source(resized(part, size).to(device), label)
    finally:
        for hook in hooks:
            hook.remove()
    return importance
