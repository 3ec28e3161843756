"""Codes of real people's pictures: an inversion's plan, shards and table. Its networks are in passersby/restyle."""
