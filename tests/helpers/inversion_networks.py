"""Tiny real networks for tests of inversion, the same at every call."""

import torch

from passersby.restyle.encoder import EncoderConfig, RestyleEncoder
from passersby.stylegan3 import Generator, GeneratorConfig


def tiny_generator() -> Generator:
    """Config T of 64 x 32 with few channels, and a w average as after training."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig.config_t(64, 32, channel_base=512, channel_max=16, output_scale=4.0))
    generator.mapping.w_avg.normal_()
    return generator.eval().requires_grad_(False)


def tiny_encoder() -> tuple[RestyleEncoder, torch.Tensor]:
    """An untrained encoder of 32 x 16 pixels, with corrections as large as a w, and an average code."""
    torch.manual_seed(1)
    config = EncoderConfig(32, 16, 16, 512, "resnet10", width_factor=0.125, head_channels=16)
    encoder = RestyleEncoder(config)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training, not the identity
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return encoder.eval().requires_grad_(False), torch.randn(512).expand(16, -1).clone()
