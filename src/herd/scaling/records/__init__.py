"""The table of runs: typed rows, their checks, their units, and where they are read from."""
