"""Re-identification networks, their features of images, and their files, also the files of other tools.

Their training is in training/reid; the comparison of their features is in metrics/.
"""
