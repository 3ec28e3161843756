"""Inversion of images into latent codes: the ReStyle encoder, refinement of its codes, and a person's code.

Alaluf, Patashnik and Cohen-Or, "ReStyle: A Residual-Based StyleGAN Encoder via Iterative Refinement" (2021), on
StyleGAN3 as in Alaluf et al., "Third Time's the Charm? Image and Video Editing with StyleGAN3" (2022).
How an encoder is trained stands in training/encoder, tables of codes stand in datasets/latents.
"""
