"""A document encoder: the backbone under a bidirectional mask, mean pooling, a linear head. For classifying documents.

The same Transformer, blocks and weights as the language model; only the mask differs: within a document every token sees every
other, between documents nothing is seen. So a pre-trained checkpoint is a starting point, and packed rows work as elsewhere.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from herd.config.errors import UserError
from herd.model.io import load_model, read_weights, save_model
from herd.model.masks import Dense
from herd.model.transformer import Linear, Transformer
from herd.runs.atomic import write_bytes, write_json
from herd.runs.seeds import torch_seed

_FORMAT = "herd.encoder/1"
_BACKBONE, _HEAD, _CONFIG = "backbone", "head", "encoder.json"


class DocumentEncoder(nn.Module):
    """Logits over classes for each document of packed rows.

    Args:
        backbone: its output head is not used.
        classes: names, in the order of the logits.
        seed: of the head's initialisation, N(0, 1 / sqrt(dim + 1)) as standard deviation.
    """

    def __init__(self, backbone: Transformer, classes: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, tuple(classes)
        dim = backbone.config.dim
        self.head = Linear(dim, len(self.classes))
        self.bias = nn.Parameter(torch.zeros(len(self.classes)))
        generator = torch.Generator("cpu").manual_seed(torch_seed(seed, "init", "encoder_head"))
        with torch.no_grad():
            self.head.weight.copy_(torch.empty(self.head.weight.shape).normal_(0.0, (dim + 1) ** -0.5, generator=generator))

    def forward(self, tokens: Tensor, positions: Tensor, lengths: tuple[tuple[int, ...], ...], ends: Tensor) -> Tensor:
        """(documents, classes) float32.

        Args:
            tokens: (B, T) int64.
            positions: (B, T) int64, from 0 in each document.
            lengths: per row the tokens of each document in it, padding last; each row sums to T.
            ends: (documents,) int64, place of each document's last token in the flattened rows.
        """
        owners = document_of(lengths).to(tokens.device)
        hidden = self.backbone(tokens, positions, within_documents(owners)).flatten(0, 1)
        flat = owners.flatten()
        count = int(sum(map(len, lengths)))
        total = hidden.new_zeros(count, hidden.shape[1]).index_add(0, flat, hidden)
        mean = total / torch.bincount(flat, minlength=count).to(total)[:, None]
        return (self.head(mean[flat[ends]]) + self.bias).float()


def document_of(lengths: tuple[tuple[int, ...], ...]) -> Tensor:
    """(B, T) int64: which document each token belongs to, numbered through the batch; padding counts as a document."""
    sizes = torch.tensor([length for row in lengths for length in row])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes).view(len(lengths), -1)


def within_documents(owners: Tensor) -> Dense:
    """The mask under which every token sees its whole document and nothing else."""
    return Dense(owners[:, :, None] == owners[:, None, :])


def save_encoder(encoder: DocumentEncoder, folder: Path) -> None:
    """Backbone, head and class names; no pickle."""
    save_model(encoder.backbone, folder / _BACKBONE)
    state = {"weight": encoder.head.weight, "bias": encoder.bias}
    content = save({name: t.detach().cpu().contiguous() for name, t in state.items()}, metadata={"format": "pt"})
    write_bytes(folder / _HEAD / "model.safetensors", content)
    write_json(folder / _CONFIG, {"format": _FORMAT, "classes": list(encoder.classes)})


def load_encoder(folder: Path) -> DocumentEncoder:
    """What :func:`save_encoder` wrote.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others.
    """
    path = Path(folder) / _CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        classes = values["classes"]
        if values["format"] != _FORMAT or not all(isinstance(name, str) for name in classes):
            raise ValueError("another format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or no {_FORMAT} file: give a folder that `herd distill-classifier` wrote.") from error
    encoder = DocumentEncoder(load_model(Path(folder) / _BACKBONE), classes)
    state = read_weights(Path(folder) / _HEAD)
    if {n: t.shape for n, t in state.items()} != {"weight": encoder.head.weight.shape, "bias": encoder.bias.shape}:
        raise UserError(f"{folder}: the head does not fit {_CONFIG} and the backbone: write it again.")
    with torch.no_grad():
        encoder.head.weight.copy_(state["weight"])
        encoder.bias.copy_(state["bias"])
    return encoder
