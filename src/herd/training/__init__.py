"""Thin Lightning modules over a common base, the curriculum, the optimizer, checkpoints and the trainer's assembly."""
