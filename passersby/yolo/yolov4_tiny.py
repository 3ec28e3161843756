"""YOLOv4-tiny and its kin in PyTorch, evaluated only where an image can differ from a known background.

The pedestrian filter pastes a small person into a constant border, so most of every activation map is the same for
every image. The maps of the background are computed once. For an image, each layer is evaluated inside the window that
the person can affect, with the background around it. The windows follow from kernel sizes and strides, so nothing is
approximated, and the result is that of the full evaluation up to float noise. Without a background the window is the
whole map and this is the plain network.

Network: Bochkovskiy et al., YOLOv4, https://arxiv.org/abs/2004.10934; Wang et al., Scaled-YOLOv4,
https://arxiv.org/abs/2011.08036 (YOLOv4-tiny).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passersby.yolo.darknet import Convolution, DarknetNetwork, MaxPool, Route, Upsample, Yolo

LEAKY_SLOPE = 0.1


class Window(NamedTuple):
    """Rows top..bottom and columns left..right of a map, without the ends bottom and right."""

    top: int
    left: int
    bottom: int
    right: int

    def union(self, other: "Window") -> "Window":
        return Window(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def intersection(self, other: "Window") -> "Window":
        return Window(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def cut(self, maps: Tensor, origin: tuple[int, int] = (0, 0)) -> Tensor:
        """The view of `maps` [N, C, H, W] inside the window; `origin` is the position of maps[..., 0, 0]."""
        top, left = origin
        return maps[:, :, self.top - top : self.bottom - top, self.left - left : self.right - left]


def influenced(window: Window, size: int, stride: int, padding: int) -> Window:
    """The outputs of a convolution or pooling that read at least one input inside `window`.

    Output o reads the inputs o * stride - padding ... o * stride - padding + size - 1.
    """
    first = [-((size - 1 - padding - start) // stride) for start in window[:2]]
    last = [(end - 1 + padding) // stride for end in window[2:]]
    return Window(first[0], first[1], last[0] + 1, last[1] + 1)


def needed(window: Window, size: int, stride: int, padding: int) -> Window:
    """The inputs that the outputs inside `window` read; may reach into the padding, outside the map."""
    first = [start * stride - padding for start in window[:2]]
    last = [(end - 1) * stride - padding + size for end in window[2:]]
    return Window(*first, *last)


class Paste(nn.Module):
    """Pastes the window of an activation into its background, over a region that may reach into the padding."""

    template: Tensor

    def __init__(self, background: Tensor, window: Window, region: Window, outside: float = 0.0):
        """`background` [1, C, H, W]; `window` is inside the map; `region` is the output; `outside` the padding."""
        super().__init__()
        height, width = background.shape[2:]
        inside = region.intersection(Window(0, 0, height, width))
        size = (1, background.shape[1], region.bottom - region.top, region.right - region.left)
        template = background.new_full(size, outside)
        inside.cut(template, region[:2]).copy_(inside.cut(background))
        self.register_buffer("template", template, persistent=False)
        self.window, self.region = window, region
        self.overlap = window.intersection(region)  # smaller where strides skip the last row or column

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, window] -> [N, C, region]."""
        if self.window == self.region:
            return maps
        pasted = self.template.expand(len(maps), -1, -1, -1).clone(memory_format=torch.channels_last)
        self.overlap.cut(pasted, self.region[:2]).copy_(self.overlap.cut(maps, self.window[:2]))
        return pasted


class WindowedLayer(nn.Module):
    """One layer: the regions that it reads of other layers, and its operation on these regions."""

    weight: Tensor  # only convolutions have weight and bias
    bias: Tensor

    def __init__(self, layer, sources: list[int], pastes: list[Paste], window: Window):
        super().__init__()
        self.layer, self.sources, self.window = layer, sources, window
        self.pastes = nn.ModuleList(pastes)
        if isinstance(layer, Convolution):
            weight = torch.from_numpy(layer.weight).to(memory_format=torch.channels_last)
            self.register_buffer("weight", weight, persistent=False)
            self.register_buffer("bias", torch.from_numpy(layer.bias), persistent=False)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        layer = self.layer
        inputs = [paste(maps) for paste, maps in zip(self.pastes, inputs, strict=True)]
        if isinstance(layer, Convolution):
            # The convolution needs no padding: the pasted region contains the zeros outside the map.
            maps = F.conv2d(inputs[0], self.weight, self.bias, layer.stride)
            return F.leaky_relu_(maps, LEAKY_SLOPE) if layer.leaky else maps
        if isinstance(layer, Route):
            inputs = [maps.chunk(layer.groups, 1)[layer.group] for maps in inputs]
            return inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
        if isinstance(layer, MaxPool):
            return F.max_pool2d(inputs[0], layer.size, layer.stride)  # the region contains the padding, too
        if isinstance(layer, Upsample):
            return F.interpolate(inputs[0], scale_factor=layer.stride, mode="nearest")
        return inputs[0]


class Yolov4Tiny(nn.Module):
    """The network of a .cfg, evaluated inside the window of its input where images differ from a background.

    Give `background` [3, H, W] float32 0..1 (RGB) and `window` together, or neither for the plain network.
    """

    def __init__(self, network: DarknetNetwork, background: Tensor | None = None, window: Window | None = None):
        super().__init__()
        self.network = network
        whole_input = Window(0, 0, network.height, network.width)
        self.window = window or whole_input
        # First build the plain network: its maps of the background surround the windows of the second.
        shapes = [(3, network.height, network.width), *network.shapes]
        maps = [torch.zeros(1, 1, 1, 1).expand(1, *shape) for shape in shapes]
        self.layers = self.build(whole_input, maps)
        if background is not None and self.window != whole_input:
            with torch.inference_mode():
                maps = [background[None], *self.activations(background[None])]
            maps = [map.clone() for map in maps]
            self.layers = self.build(self.window, maps)

    def build(self, window: Window, backgrounds: list[Tensor]) -> nn.ModuleList:
        """The layers for images that differ inside `window` of their input.

        `backgrounds`: the background itself and every layer's map of it, each [1, C, H, W].
        """
        windows = [window]  # windows[i + 1] belongs to layer i, as do the backgrounds
        layers = nn.ModuleList()
        for index, (layer, shape) in enumerate(zip(self.network.layers, self.network.shapes, strict=True)):
            sources = [source + 1 for source in layer.sources] if isinstance(layer, Route) else [index]
            window = windows[sources[0]]
            for source in sources[1:]:
                window = window.union(windows[source])
            region = window
            if isinstance(layer, Convolution | MaxPool):
                kernel = (layer.size, layer.stride, layer.padding if isinstance(layer, Convolution) else layer.before)
                window = influenced(window, *kernel).intersection(Window(0, 0, *shape[1:]))
                region = needed(window, *kernel)
            elif isinstance(layer, Upsample):
                window = Window(*(side * layer.stride for side in window))
            elif isinstance(layer, Yolo):
                window = region = Window(0, 0, *shape[1:])  # a head's boxes cover the whole map
            # Padding is zeros for a convolution, and never the maximum of a pooling.
            outside = -math.inf if isinstance(layer, MaxPool) else 0.0
            pastes = [Paste(backgrounds[source], windows[source], region, outside) for source in sources]
            layers.append(WindowedLayer(layer, sources, pastes, window))
            windows.append(window)
        return layers

    def activations(self, images: Tensor) -> list[Tensor]:
        """Every layer's output for `images` [N, 3, window], each inside its own window."""
        maps = [images.contiguous(memory_format=torch.channels_last)]
        for layer in self.layers:
            assert isinstance(layer, WindowedLayer)  # `build` makes no others
            maps.append(layer([maps[source] for source in layer.sources]))
        return maps[1:]

    def forward(self, images: Tensor) -> Tensor:
        """Raw heads of `images` [N, 3, window] 0..1 RGB -> [N, boxes, 5 + classes] float32 logits.

        The boxes are those of one head after the other, and within a head in the order of row, column and anchor
        (Darknet's order).
        """
        maps = self.activations(images)
        heads = []
        for layer, head in zip(self.network.layers, maps, strict=True):
            if isinstance(layer, Yolo):
                heads.append(head.permute(0, 2, 3, 1).reshape(len(head), -1, 5 + layer.classes).float())
        return torch.cat(heads, 1)

    def decode(self, logits: Tensor) -> Tensor:
        """Logits -> boxes, both [N, boxes, 5 + classes] float32.

        x, y (centre), width, height as shares of the input; objectness 0..1; class scores 0..1 =
        objectness x class probability, as Darknet and OpenCV define them.
        """
        decoded, start = [], 0
        for layer, (_, height, width) in zip(self.network.layers, self.network.shapes, strict=True):
            if not isinstance(layer, Yolo):
                continue
            count = height * width * len(layer.anchors)
            head = logits[:, start : start + count].view(-1, height, width, len(layer.anchors), 5 + layer.classes)
            start += count
            size = head.new_tensor([self.network.width, self.network.height])
            rows, columns = torch.meshgrid(
                torch.arange(height, device=head.device),
                torch.arange(width, device=head.device),
                indexing="ij",
            )
            cells = torch.stack([columns, rows], -1)[:, :, None]
            centre = head[..., :2].sigmoid() * layer.scale_xy - (layer.scale_xy - 1) / 2
            centre = (centre + cells) / head.new_tensor([width, height])
            extent = head[..., 2:4].exp() * head.new_tensor(layer.anchors) / size
            objectness = head[..., 4:5].sigmoid()
            boxes = torch.cat([centre, extent, objectness, objectness * head[..., 5:].sigmoid()], -1)
            decoded.append(boxes.flatten(1, 3))
        return torch.cat(decoded, 1)
