"""The loader on 10 GB of shards: seconds to the first batch, tokens a second of one core by row length, memory.

The shards are written for the purpose (uint16 ids, documents of log-normal length, median 500 tokens) and deleted afterwards.
Each row length is measured in a fresh process; memory is what that process holds alone, without the pages of mapped files, which
the system takes back when it needs them. Run: ``python benchmarks/training/loader.py``.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save

ROW_LENGTHS = (128, 256, 512, 2048, 8192)
BATCH_TOKENS = 2**17
SECONDS = 8.0  # of reading for each rate
VOCABULARY = 32_000
WEIGHTS = {"general": 0.6, "code": 0.4}


def write_shards(folder: Path, n_bytes: float) -> None:
    """Token files of ``n_bytes`` in all, with what a reader wants beside them; random ids in place of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    entries = {}
    for domain, weight in WEIGHTS.items():
        target = folder / "train" / domain
        target.mkdir(parents=True)
        tokens = int(n_bytes * weight / 2)
        sizes = np.maximum(2, generator.lognormal(np.log(500), 1.0, int(tokens / 700))).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        noise = generator.integers(0, VOCABULARY, 2**22, dtype=np.uint16)
        with (target / "tokens.bin").open("wb") as file:
            left = int(offsets[-1])
            while left:
                file.write(noise[: min(left, len(noise))].tobytes())
                left -= min(left, len(noise))
        np.save(target / "offsets.npy", offsets)
        np.save(target / "bytes.npy", sizes * 4)
        names = pa.array(np.char.add(f"{domain}/", np.arange(len(sizes)).astype(str)))
        pq.write_table(pa.table({"id": names}), target / "ids.parquet")
        entries[domain] = {"tokens": int(offsets[-1]), "documents": len(sizes)}
    np.save(folder / "token_bytes.npy", np.full(VOCABULARY, 4, dtype=np.int32))
    index = {"dtype": "uint16", "vocab_size": VOCABULARY, "pad_id": 0, "splits": {"train": entries}}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def measure(folder: Path, seq_len: int) -> dict[str, float]:
    """First batch and rate of one row length, in this process."""
    from herd.corpus.mixture import Mixture, Phase
    from herd.corpus.shards import TokenShards

    clock, worked = time.perf_counter(), time.process_time()
    shards = TokenShards(folder)
    rows = BATCH_TOKENS // seq_len
    total = sum(shards.tokens("train").values()) // seq_len
    mixture = Mixture(shards, "train", [Phase(int(total * 0.9), seq_len, WEIGHTS)], seed=0)
    mixture.rows(0, 0, rows)
    first, first_worked = time.perf_counter() - clock, time.process_time() - worked
    rates, memory, step, begun = [], [], 1, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        clock = time.process_time()
        mixture.rows(0, step * rows, rows)
        rates.append(BATCH_TOKENS / (time.process_time() - clock))
        memory.append(anonymous_bytes())
        step += 1
    return {
        "seq_len": seq_len,
        "first_batch_seconds": first,
        "first_batch_cpu_seconds": first_worked,
        "tokens_per_cpu_second": statistics.median(rates),
        "batches": len(rates),
        "private_mb_after_2_batches": memory[1] / 2**20,
        "private_mb_at_the_end": memory[-1] / 2**20,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell RssAnon")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "SEQ_LEN"))
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), int(arguments.measure[1]))))
        sys.exit()
    with tempfile.TemporaryDirectory() as temporary:
        write_shards(Path(temporary), arguments.gigabytes * 1e9)
        results = []
        for seq_len in ROW_LENGTHS:
            command = [sys.executable, __file__, "--measure", temporary, str(seq_len)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
            print(results[-1])
    print(save(__file__, f"python benchmarks/training/loader.py --gigabytes {arguments.gigabytes:g}", results))
