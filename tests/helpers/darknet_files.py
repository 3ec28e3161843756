"""Small detectors in Darknet's format with random numbers: structures as text, and .weights that fit them."""

from pathlib import Path

import numpy as np

from passersby.yolo.darknet import Convolution, read_structure

ANCHORS = "4,9, 8,18, 14,30, 20,44, 28,60, 36,76, 44,90, 60,96, 80,110"
# `thresh` and `nms_threshold` make OpenCV return every box as it is.
NET = "[net]\nbatch=1\nheight={height}\nwidth={width}\nchannels=3\n"
YOLO = (
    "[yolo]\nmask={mask}\nanchors={anchors}\nclasses={classes}\nnum=9\nscale_x_y={scale}\nthresh=0\nnms_threshold=0\n"
)


def convolution(filters: int, size: int = 3, stride: int = 1) -> str:
    """A convolution with batch normalisation and leaky ReLU."""
    options = f"batch_normalize=1\nfilters={filters}\nsize={size}\nstride={stride}\npad=1\nactivation=leaky\n"
    return f"[convolutional]\n{options}"


def head(classes: int, mask: str, scale: float = 1.05) -> str:
    """The last convolution before a head, and the head."""
    filters = 3 * (5 + classes)
    last = f"[convolutional]\nsize=1\nstride=1\npad=1\nfilters={filters}\nactivation=linear\n"
    return last + YOLO.format(mask=mask, anchors=ANCHORS, classes=classes, scale=scale)


def pool(size: int, stride: int) -> str:
    """A maximum."""
    return f"[maxpool]\nsize={size}\nstride={stride}\n"


def route(*layers: int, groups: int = 1) -> str:
    """Layers one after the other, or the last of two groups of channels."""
    text = f"[route]\nlayers={','.join(map(str, layers))}\n"
    return text if groups == 1 else f"{text}groups={groups}\ngroup_id={groups - 1}\n"


def cross_stage(width: int) -> str:
    """The block of YOLOv4-tiny, with a pooling behind it."""
    parts = [convolution(width), route(-1, groups=2), convolution(width // 2), convolution(width // 2), route(-1, -2)]
    return "".join([*parts, convolution(width, 1), route(-6, -1), pool(2, 2)])


def three_scales(classes: int, height: int, width: int) -> str:
    """As yolov4-tiny-3l, with few channels: three heads."""
    body = convolution(4, stride=2) + convolution(8, stride=2) + cross_stage(8) + cross_stage(8) + cross_stage(8)
    first = convolution(16) + convolution(8, 1) + convolution(16) + head(classes, "6,7,8")
    second = route(-4) + convolution(8, 1) + "[upsample]\nstride=2\n" + route(-1, 23)
    second += convolution(8) + head(classes, "3,4,5")
    third = route(-3) + convolution(8, 1) + "[upsample]\nstride=2\n" + route(-1, 15)
    third += convolution(8) + head(classes, "0,1,2")
    return NET.format(height=height, width=width) + body + first + second + third


def version_three(classes: int, height: int, width: int) -> str:
    """As yolov3-tiny, with few channels: two heads, and a pooling of overlapping windows."""
    body = "".join(convolution(filters) + pool(2, 2) for filters in (4, 4, 8, 8, 8))
    first = convolution(8) + pool(2, 1) + convolution(16) + convolution(8, 1) + convolution(8)
    first += head(classes, "3,4,5", 1.0)
    second = route(-4) + convolution(8, 1) + "[upsample]\nstride=2\n" + route(-1, 8) + convolution(8)
    return NET.format(height=height, width=width) + body + first + second + head(classes, "0,1,2", 1.0)


def pyramid_pooling(classes: int, height: int, width: int) -> str:
    """Maxima over windows of three sizes, one window each pixel (SPP), and one head."""
    body = "".join(convolution(8, stride=2) for _ in range(4))
    pools = pool(5, 1) + route(-2) + pool(9, 1) + route(-4) + pool(13, 1) + route(-1, -3, -5, -6)
    return NET.format(height=height, width=width) + body + pools + convolution(8) + head(classes, "0,1,2")


def write_detector(folder: Path, structure: str, name: str = "own", names: tuple[str, ...] = (), seed: int = 0) -> Path:
    """NAME.cfg, NAME.weights of random numbers, and NAME.names if there are names; returns the .weights."""
    path = folder / f"{name}.weights"
    path.with_suffix(".cfg").write_text(structure)
    random, numbers = np.random.default_rng(seed), []
    for layer in read_structure(path.with_suffix(".cfg")).layers:
        if isinstance(layer, Convolution):
            fan_in = layer.channels * layer.size**2
            numbers.append(random.normal(0, 0.3, layer.filters))  # biases
            if layer.batch_normalize:
                scale, mean, variance = (random.uniform(0.6, 1.6, layer.filters) for _ in range(3))
                numbers += [scale, mean - 1, variance]
            # The last layers are fainter, so that no score is near 0 or 1.
            numbers.append(random.normal(0, (1.2 if layer.leaky else 0.4) / fan_in**0.5, layer.filters * fan_in))
    version = np.array([0, 2, 5], "<i4").tobytes() + bytes(8)
    path.write_bytes(version + np.concatenate(numbers).astype("<f4").tobytes())
    if names:
        path.with_suffix(".names").write_text("\n".join(names) + "\n")
    return path
