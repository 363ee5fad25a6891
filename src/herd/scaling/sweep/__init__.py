"""A sweep of cells: plan, folder, waves, live view, dashboard."""
