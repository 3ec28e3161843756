"""Frozen networks that judge pictures: LPIPS and Inception. The scores made of their features stand in metrics/."""
