"""The table of stage commands: where each lives, and which earlier stage its inputs come from unless told.

Held as text so that ``herd --help`` lists the commands without importing any of them.
"""

import importlib
from dataclasses import dataclass, field

from herd.config.errors import UserError, nearest
from herd.runs.stage import Stage
from herd.runs.tool import Tool


@dataclass(frozen=True)
class Command:
    """One stage command."""

    module: str  # module that exports STAGE
    summary: str  # one line for `herd --help`
    inputs: dict[str, str] = field(default_factory=dict)  # input -> node of the same run that it defaults to
    optional: tuple[str, ...] = ()  # of these, those that the command can do without
    gathers: str = ""  # group of inputs: every finished stage of the same run, or of a run whose folder is given for it
    unless: str = ""  # key of the configuration that, when set, stands in for the inputs
    verbatim: tuple[str, ...] = ()  # keys whose value is taken as it stands: paths, and names that are groups elsewhere


COMMANDS: dict[str, Command] = {
    "curate": Command("herd.curation.stage", "raw pages to clean, deduplicated, rated documents"),
    "distill-classifier": Command(
        "herd.alignment.distill_stage",
        "labels of a model to a small encoder that scores documents",
        {"tokens": "tokenize", "documents": "curate"},
        optional=("documents",),
    ),
    "ngram-index": Command(
        "herd.curation.ngram_index_stage",
        "runs of words of the training documents, to find benchmarks in",
        {"documents": "curate"},
    ),
    "contamination": Command(
        "herd.curation.contamination_stage",
        "benchmark examples that training has seen, and their gain",
        {"index": "ngram-index"},
    ),
    "tokenize": Command("herd.corpus.tokenize_stage", "train the tokenizer, write token shards", {"documents": "curate"}),
    "export-tokens": Command("herd.corpus.export_stage", "token shards for other trainers", {"tokens": "tokenize"}),
    "scaling-plan": Command("herd.scaling.plan_stage", "budgets and sizes to the cells of an IsoFLOP sweep"),
    "scaling-sweep": Command(
        "herd.scaling.sweep_stage",
        "train the cells of a sweep (Hydra multirun), gather their table",
        {"tokens": "tokenize"},
    ),
    "scaling-fit": Command(
        "herd.scaling.fit_stage",
        "IsoFLOP parabolas, power law, forecast of the flagship",
        {"sweep": "scaling-sweep"},
        optional=("sweep",),
        unless="table",
    ),
    "scaling-forecast": Command(
        "herd.scaling.forecast_stage",
        "loss, size and benchmarks of larger runs, each with its interval",
        {"fit": "scaling-fit"},
        optional=("fit",),
        unless="table",
    ),
    "mix-fit": Command("herd.scaling.mix_fit_stage", "mixtures and held-out losses to mixture laws and the mix to train next"),
    "mix-anneal": Command("herd.scaling.mix_anneal_stage", "annealing runs to a ranking of candidate sources, with intervals"),
    "scaling-next": Command(
        "herd.scaling.next_stage",
        "the runs that pin the goal down most for their cost",
        {"sweep": "scaling-sweep"},
        optional=("sweep",),
        unless="table",
    ),
    "pretrain": Command("herd.training.pretrain_stage", "pre-train a model by curriculum", {"tokens": "tokenize"}),
    "dialogs": Command("herd.alignment.dialogs_stage", "documentation to chat prompts and seed dialogs", {"documents": "curate"}),
    "import-rows": Command("herd.alignment.import_rows_stage", "your own dialogs or preferences, from JSONL, Parquet or the hub"),
    "preferences": Command("herd.alignment.preferences_stage", "graded pairs of responses, some edited", {"dialogs": "dialogs"}),
    "reward": Command(
        "herd.alignment.reward_stage", "train a reward model on preferences", {"tokens": "tokenize", "base": "pretrain"}
    ),
    "reject": Command(
        "herd.alignment.reject_stage",
        "rejection sampling: K answers, the best by reward",
        {"tokens": "tokenize", "generator": "sft", "reward": "reward", "prompts": "dialogs"},
        optional=("generator",),
    ),
    "prune": Command(
        "herd.alignment.prune_stage",
        "SFT dialogs to the clean, good and different ones",
        {"tokens": "tokenize", "reward": "reward", "prompts": "dialogs"},
        optional=("tokens", "reward", "prompts"),
    ),
    "sft": Command(
        "herd.alignment.sft_stage",
        "supervised fine-tuning on dialogs",
        {"tokens": "tokenize", "base": "pretrain", "heldout": "dialogs"},
        optional=("heldout",),
    ),
    "dpo": Command(
        "herd.alignment.dpo_stage",
        "direct preference optimisation",
        {"tokens": "tokenize", "model": "sft", "preferences": "preferences"},
    ),
    "average": Command("herd.alignment.average_stage", "average the weights of models"),
    "best": Command(
        "herd.alignment.best_stage",
        "the best checkpoint for each kind of task, by reward",
        {"tokens": "tokenize", "prompts": "dialogs", "reward": "reward"},
    ),
    "evaluate": Command(
        "herd.evaluation.stage",
        "score checkpoints, each with its interval",
        {"tokens": "tokenize", "documents": "curate", "dialogs": "dialogs"},
        optional=("dialogs",),
    ),
    "import": Command(
        "herd.interchange.import_stage", "a Hugging Face or Meta checkpoint as a model of ours", verbatim=("source",)
    ),
    "report": Command("herd.report.stage", "plots, page and summary of a run", gathers="stages"),
}

# Commands that are no stages: module that exports TOOL, and one line for `herd --help`.
TOOLS: dict[str, tuple[str, str]] = {
    "export": ("herd.interchange.export", "a model as a folder that Hugging Face loads"),
    "generate": ("herd.generation.tool", "continue prompts or answer messages with a model"),
    "chat": ("herd.generation.terminal", "talk to a model in the terminal"),
    "serve": ("herd.generation.serve", "a model behind OpenAI's interface, on this machine"),
}


def get_stage(command: str) -> Stage:
    """Import and return the stage behind ``command``; UserError for an unknown one."""
    if command not in COMMANDS:
        raise UserError(f"No command '{command}'.{nearest(command, COMMANDS)} `herd --help` lists them.")
    stage = importlib.import_module(COMMANDS[command].module).STAGE
    assert isinstance(stage, Stage) and stage.name == command, f"{COMMANDS[command].module} exports another stage"
    return stage


def get_tool(command: str) -> Tool:
    """Import and return the tool behind ``command``."""
    tool = importlib.import_module(TOOLS[command][0]).TOOL
    assert isinstance(tool, Tool) and tool.name == command, f"{TOOLS[command][0]} exports another tool"
    return tool
