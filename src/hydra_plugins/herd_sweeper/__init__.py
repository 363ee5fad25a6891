"""Hydra sweeper `herd_cells`."""
