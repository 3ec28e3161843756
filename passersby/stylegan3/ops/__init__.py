"""The operations that StyleGAN3 is built of: convolutions and the filtered leaky ReLU. Networks stand one folder up."""
