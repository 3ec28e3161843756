"""Exports of generated images for other tools: the choice of images, their names and files. Runs are in runs/."""
