"""Jobs run their stages on Ray: pools on the nodes of a cluster, units through stages, and the commit of units.

The stages are in actors/, which knows no Ray.
"""
