"""What draws answers for a stage: our own engine, or a server."""
