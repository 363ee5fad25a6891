"""Phase `words`: how often each word occurs in each language, the reference of the divergence filter."""

import numpy as np

from herd.curation.kl import bucket_counts
from herd.curation.pipeline.tasks import Result, Work
from herd.curation.text import word_hashes, words
from herd.runs.tables import Replacing, open_table


def count_words(work: Work, partition: int) -> Result:
    """Counts of the partition's words by language and bucket: integers, so that no order of adding can matter."""
    buckets = work.config.kl.buckets
    counts: dict[str, np.ndarray] = {}
    for batch in open_table(work.part("gather", partition, ".parquet")).iter_batches(256, columns=["language", "text"]):
        for row in batch.to_pylist():
            own = counts.setdefault(row["language"], np.zeros(buckets, np.int64))
            own += bucket_counts(word_hashes(words(row["text"], row["language"])), buckets)
    languages = sorted(counts)
    with Replacing(work.part("words", partition, ".counts")) as out:
        for language in languages:
            out.write(counts[language].tobytes())
    return {"languages": languages}


def reference_counts(work: Work) -> dict[str, np.ndarray]:
    """Language -> counts (buckets,) over all partitions, for languages with enough words."""
    if not work.config.kl.enabled:
        return {}
    total: dict[str, np.ndarray] = {}
    for partition in range(work.config.partitions):
        languages = work.result("words", partition)["languages"]
        counts = np.fromfile(work.part("words", partition, ".counts"), np.int64).reshape(len(languages), work.config.kl.buckets)
        for language, own in zip(languages, counts, strict=True):
            total[language] = total.get(language, 0) + own
    return {language: counts for language, counts in total.items() if counts.sum() >= work.config.kl.min_words}
