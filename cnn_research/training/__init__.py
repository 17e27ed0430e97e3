"""Training: from a config and a workdir to a trained network."""
