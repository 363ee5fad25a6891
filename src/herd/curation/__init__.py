"""Raw pages -> documents: collection, extraction, deduplication, quality, held-out split. Never imports torch."""
