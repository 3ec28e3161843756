"""YOLOv4-tiny, read from Darknet's files, and the pedestrian filter made of it.

The filter gives scores; thresholds and verdicts stand in datasets/runs.
"""
