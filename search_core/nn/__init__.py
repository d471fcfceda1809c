"""Torch modules: candidate operations, the single-path supernet and the derived network."""
