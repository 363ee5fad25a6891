"""What to run next: the posterior of a fit, what each candidate would teach per FLOP, the cost of a wrong size."""
