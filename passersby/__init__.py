"""Plain PyTorch networks and their checkpoint formats. Never imports Ray."""
