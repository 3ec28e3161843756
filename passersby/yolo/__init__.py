"""YOLOv4-tiny and the pedestrian filter made of it. Thresholds and verdicts stand in datasets/runs."""
