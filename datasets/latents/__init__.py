"""Codes of real people's pictures: an inversion's plan, shards and table. Its networks stand in passersby/restyle."""
