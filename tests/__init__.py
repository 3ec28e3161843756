"""The tests. A package, because an installed library brings a `tests` of its own, which would come first."""
