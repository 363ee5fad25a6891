"""A scalar head on the backbone: the reward model."""

import torch
from torch import Tensor, nn

from herd.model.masks import CAUSAL, Mask
from herd.model.transformer import Linear, Transformer
from herd.runs.seeds import torch_seed


class RewardModel(nn.Module):
    """Scores every position; the score of a response is read at its last real token (Llama 3 paper, section 4.1.2).

    Args:
        backbone: the pre-trained model, used as it is (its output head is not).
        seed: seed of the head's initialisation, N(0, 1 / sqrt(dim + 1)) as standard deviation (open-instruct).
    """

    def __init__(self, backbone: Transformer, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        dim = backbone.config.dim
        self.head = Linear(dim, 1)
        if not self.head.weight.is_meta:
            generator = torch.Generator("cpu").manual_seed(torch_seed(seed, "init", "reward_head"))
            start = torch.empty(1, dim, device="cpu").normal_(0.0, (dim + 1) ** -0.5, generator=generator)
            with torch.no_grad():
                self.head.weight.copy_(start)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, mask: Mask = CAUSAL) -> Tensor:
        """Scores at every position, (B, T), float32 (float64 for a float64 model)."""
        scores = self.head(self.backbone(tokens, positions, mask)).squeeze(-1)
        return scores if scores.dtype == torch.float64 else scores.float()
