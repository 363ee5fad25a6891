"""Losses as pure functions of tensors: cross-entropy, ranking, DPO."""
