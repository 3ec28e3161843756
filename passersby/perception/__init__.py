"""Frozen networks that judge pictures: shift-tolerant LPIPS and the Inception of 2015.

The scores made of their features stand in metrics/, networks that tell people apart in reid/.
"""
