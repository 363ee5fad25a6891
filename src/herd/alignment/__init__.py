"""Post-training: documentation dialogs, graded preferences, rejection sampling, averaging, and the stages of a round."""
