"""Trainings of generators, encoders and re-ID networks: steps, and loops around them. Ray Train stands in pipeline/."""
