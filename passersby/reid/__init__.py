"""Re-identification networks, what they make of images, and their files, others' among them.

How they are trained stands in training/reid, how their features are compared in metrics/.
"""
