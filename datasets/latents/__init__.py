"""Codes of real people's pictures: the plan of an inversion, its shards, its table. Networks: passersby/restyle."""
