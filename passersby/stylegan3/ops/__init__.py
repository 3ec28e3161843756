"""The operations of StyleGAN3's layers: convolutions and the filtered leaky ReLU, as functions of tensors.

The layers and networks that use them are one folder up.
"""
