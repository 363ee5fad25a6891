"""MinHash signatures (112 permutations, word 5-grams) on one core against datatrove's signature step; recall and precision.

Run: ``python benchmarks/curation/minhash.py --peer peers/bin/python``. Both sides go from text to signature: datatrove by
``MinhashDedupSignature.get_shingles`` and ``get_signature`` (its own word tokeniser, xxhash of each 5-gram, 32 bits), without the
writing of files.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from pages import Peer, docstrings, megabytes, options, turns  # noqa: E402 - found by the line above

PERMUTATIONS, WORDS = 112, 5


def peer_sides():
    """datatrove's step."""
    import tempfile

    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    step = MinhashDedupSignature(tempfile.mkdtemp(), MinhashConfig(hash_config=HashConfig(precision=32)))

    def signatures(texts):
        for text in texts:
            step.get_signature(step.get_shingles(text))

    return {"datatrove": signatures}


def quality(texts: list[str]) -> dict[str, object]:
    """Candidates by bands against exact Jaccard similarity, over all pairs of texts and edited copies of them."""
    import numpy as np

    from herd.curation.neardup import minhash
    from herd.curation.text import jaccard, shingles

    rng = np.random.default_rng(0)
    pages = list(texts)
    for text in texts:  # copies with 1 to 20% of the words replaced, removed or doubled
        words = text.split(" ")
        changed = rng.random(len(words)) < rng.uniform(0.01, 0.2)
        kinds = rng.integers(0, 3, len(words))
        copy = [("other", "", f"{w} {w}")[k] if c else w for w, c, k in zip(words, changed, kinds, strict=True)]
        pages.append(" ".join(copy))
    sets = [shingles(page, "en", WORDS) for page in pages]
    signatures = {s: np.stack([minhash(found, PERMUTATIONS, s) for found in sets]) for s in ("affine32", "mersenne61")}
    left, right = np.triu_indices(len(sets), 1)
    exact = np.array([jaccard(sets[i], sets[j]) for i, j in zip(left.tolist(), right.tolist(), strict=True)])
    results: dict[str, object] = {"pages": len(pages), "pairs": len(exact), "pairs_from_0.7": int((exact >= 0.7).sum())}
    for scheme, values in signatures.items():
        agree = np.stack([(values[i] == values[j]) for i, j in zip(left, right, strict=True)])
        near = exact > 0.05
        error = agree.mean(1)[near] - exact[near]
        rows: dict[str, object] = {"estimate_bias": float(error.mean()), "estimate_rms_error": float(np.sqrt((error**2).mean()))}
        for bands, length in ((28, 4), (14, 8)):
            candidate = agree[:, : bands * length].reshape(-1, bands, length).all(2).any(1)
            for threshold in (0.7, 0.8):
                same = exact >= threshold
                rows[f"{bands}x{length}, Jaccard from {threshold}"] = {
                    "recall": float((candidate & same).sum() / same.sum()),
                    "precision_before_exact_check": float((candidate & same).sum() / max(candidate.sum(), 1)),
                }
        results[scheme] = rows
    return results


def main() -> None:
    given = options(__doc__, peer_sides)
    from measure import save

    from herd.curation.neardup import minhash
    from herd.curation.text import shingles

    def own(scheme):
        def signatures(texts):
            for text in texts:
                minhash(shingles(text, "en", WORDS), PERMUTATIONS, scheme)

        return signatures

    texts = docstrings(given.documents)
    peer = Peer(given.peer, __file__, texts)
    sides = {"herd, affine32": own("affine32"), "herd, mersenne61": own("mersenne61")}
    speed = turns(texts, sides, peer, ["datatrove"], given.repeats)
    peer.close()
    results = {
        "documents": len(texts),
        "megabytes": megabytes(texts),
        "processor_seconds": speed,
        "ratio_to_datatrove": {name: speed["datatrove"]["median"] / speed[name]["median"] for name in sides},
        "quality": quality(texts[:200]),
    }
    print(results)
    print(save(__file__, "python benchmarks/curation/minhash.py --peer peers/bin/python", results))


if __name__ == "__main__":
    main()
