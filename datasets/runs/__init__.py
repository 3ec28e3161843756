"""Runs of generation: plan, rows, shards, verdicts, manifest, and whether they are whole. The pipeline makes them."""
