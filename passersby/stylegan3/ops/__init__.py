"""The operations that StyleGAN3 is built of: convolutions and the filtered leaky ReLU, as functions of tensors.

The layers and networks that use them stand one folder up.
"""
