"""The loss surface E + A/N^alpha + B/D^beta: its fit, its solvers, its uncertainty."""
