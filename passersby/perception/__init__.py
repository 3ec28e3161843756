"""Frozen networks that judge pictures: shift-tolerant LPIPS and the Inception of 2015.

The scores of their features are in metrics/; networks that compare people are in reid/.
"""
