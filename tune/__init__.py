"""Sweeps of re-ID trainings on Ray Tune. A single training is in training/reid, the page of a sweep in reporting."""
