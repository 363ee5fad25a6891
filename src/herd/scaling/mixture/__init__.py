"""What a data mix does: mixing laws, proposals, the annealing appraisal."""
