"""The one schema of a row of metrics: metrics.jsonl and Weights & Biases carry these names, and no others.

A row stands for the optimizer steps since the row before it. ``/`` parts a name from the domain (source of data) it is about.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One column."""

    unit: str
    meaning: str
    measured: bool = False  # decided by a clock or the machine, so not the same when a run is made again


FIELDS: dict[str, Field] = {
    # Where the run stands.
    "step": Field("steps", "finished optimizer steps"),
    "num_tokens": Field("tokens", "input tokens of all steps so far, as planned"),
    "stage": Field("name", "stage of the curriculum"),
    "batch_tokens": Field("tokens", "in one optimizer step"),
    "seq_len": Field("tokens", "in one row"),
    "learning_rate": Field("1", "of the last step"),
    # What was learnt: means over the row's steps whose loss and gradient were finite.
    "loss": Field("nats/token", "training loss (nats/pair for reward and DPO)"),
    "z_loss": Field("nats/token", "the part of loss that holds the softmax's normaliser near 1, where it is asked for"),
    "loss/*": Field("nats/token", "training loss of the tokens of one domain"),
    "rewards/*": Field("nats", "DPO: implicit rewards, margins, and the share of pairs in order (accuracies), by TRL's names"),
    "logps/*": Field("nats", "DPO: log-probability of the answers"),
    "nll_loss": Field("nats/token", "DPO: loss of the chosen answers"),
    "accuracy": Field("share", "reward model and encoder: right decisions"),
    "margin": Field("1", "reward model: reward of the better answer less that of the worse"),
    "mean_reward": Field("1", "reward model: of all answers"),
    "grad_norm": Field("1", "norm of the gradient before clipping"),
    "eval_loss": Field("nats/token", "held-out loss, mixed by the initial stage's weights"),
    "eval_loss/*": Field("nats/token", "held-out loss of one domain"),
    # What the guard did, in the whole run.
    "nonfinite_steps": Field("steps", "left out since the loss or the gradient was not finite"),
    "spike_steps": Field("steps", "spikes: left out, or gone back from"),
    # What it cost.
    "tokens_per_second": Field("tokens/s", "trained on, over all devices", True),
    "step_seconds": Field("s", "of one step, mean", True),
    "data_seconds": Field("s", "of one step waiting for its batch (on a GPU: in which the device had nothing to do)", True),
    "forward_backward_seconds": Field("s", "of one step in forward and backward passes, clipping included", True),
    "optimizer_seconds": Field("s", "of one step in the optimizer", True),
    "checkpoint_seconds": Field("s", "of one step in saving checkpoints, as far as training waits for it", True),
    "data_wait": Field("share", "data_seconds / step_seconds", True),
    "flops_per_second": Field("FLOP/s", "over all devices, causal within each document", True),
    "mfu_full": Field("share", "of the devices' peak: attention as the full square of a row", True),
    "mfu_causal": Field("share", "of the devices' peak: the causal half of that square", True),
    "mfu_document": Field("share", "of the devices' peak: the causal half of each document's square", True),
    "memory_bytes": Field("bytes", "resident in the first process", True),
    "device_memory_allocated_bytes": Field("bytes", "most allocated on the first GPU so far", True),
    "device_memory_reserved_bytes": Field("bytes", "most reserved on the first GPU so far", True),
    "device_energy_joules": Field("J", "used by the first GPU since the row before", True),
}


def field_of(name: str) -> Field | None:
    """The schema's entry for a column, ``loss/code`` being a ``loss/*``; None when there is none."""
    return FIELDS.get(name) or FIELDS.get(f"{name.partition('/')[0]}/*" if "/" in name else name)
