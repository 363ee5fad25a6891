"""Quality of SFT dialogs: cleaning rules, topics, quality, difficulty, semantic deduplication, decontamination (`herd prune`)."""
