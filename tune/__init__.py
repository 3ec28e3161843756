"""Sweeps of re-ID trainings on Ray Tune. One training stands in training/reid, the page of a sweep in reporting."""
