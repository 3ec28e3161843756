"""Inversion of images into latent codes: the ReStyle encoder, refinement of its codes, and a person's code.

Alaluf, Patashnik and Cohen-Or, "ReStyle: A Residual-Based StyleGAN Encoder via Iterative Refinement" (2021), on
StyleGAN3 as in Alaluf et al., "Third Time's the Charm? Image and Video Editing with StyleGAN3" (2022).
The training of an encoder is in training/encoder; tables of codes are in datasets/latents.
"""
