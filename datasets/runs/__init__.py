"""Runs of generation: plan, rows, shards, verdicts, manifest, whether they are whole. They are made in pipeline/."""
