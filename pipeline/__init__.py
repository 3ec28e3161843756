"""How jobs run stages on Ray: pools on the nodes of a cluster, units through stages, what is committed.

The stages themselves stand in actors/, which knows no Ray.
"""
