"""How jobs run stages on Ray: pools on the nodes of a cluster, units through stages, what is committed."""
