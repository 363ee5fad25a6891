"""The graph of stages and its execution."""
