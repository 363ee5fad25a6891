"""How the weights of a model that only writes lie in memory."""

from collections.abc import Sequence

import torch

from herd.model.transformer import Attention, Linear, Transformer


@torch.no_grad()
def lay_out_for_few_rows(model: Transformer) -> None:
    """Store each linear weight input by input instead of output by output: shapes, values and names stay.

    A step of decoding multiplies a few rows by every weight. On a CPU such products are up to twice as fast with weights in this
    order (4 to 32 rows; from 128 rows on it makes no difference). The projections of queries, keys and values lie side by side
    and are one product (:func:`herd.products.side_by_side`). Only frozen weights on a CPU are moved: an optimizer's moments lie
    as their weight did when training began.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            _lay_out([module.wq, module.wk, module.wv])
        elif isinstance(module, Linear):
            _lay_out([module])


def _lay_out(maps: Sequence[Linear]) -> None:
    weights = [m.weight for m in maps]
    if all(w.device.type == "cpu" and not w.requires_grad and w.is_contiguous() for w in weights):
        together = torch.cat([w.t() for w in weights], dim=1)  # (inputs, all outputs)
        for weight, part in zip(weights, together.split([len(w) for w in weights], dim=1), strict=True):
            weight.data = part.t()
