"""Run folder, atomic writes, manifest, lineage, content-addressed stage cache."""
