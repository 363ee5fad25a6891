"""Curves through few points: IsoFLOP valleys, power laws, over-training, learning rate and batch, with their intervals."""
