"""Tensors: the ATLAS network, its parts, losses, metrics, checkpoints and the training loop."""
