"""Helpers of several tests: tiny networks, runs and tables made by hand, an object store, a browser."""
