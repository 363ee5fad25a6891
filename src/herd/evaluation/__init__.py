"""Tasks, scoring and statistics: what a checkpoint can do, each number with its interval."""
