"""Post-training: documentation dialogs, graded preferences, rejection sampling, averaging, and their stages."""
