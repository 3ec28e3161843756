"""What several tests share: tiny networks, runs and tables made by hand, an object store, a browser."""
