"""Trainings of generators, encoders and re-ID networks: steps and loops. Ray Train is used in pipeline/."""
