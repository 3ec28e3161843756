"""YOLOv4-tiny, read from Darknet's files, and the pedestrian filter that uses it.

The filter gives scores; thresholds and verdicts are in datasets/runs.
"""
