"""Plots, page and summary of a run, from the finished stages alone."""
