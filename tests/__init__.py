"""The tests. A package, because a library that is installed here brings a `tests` of its own, which would come first."""
