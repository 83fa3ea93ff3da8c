"""Parameter groups for fine-tuning: the rate falls from layer to layer towards the pixels.

Bao et al. 2022, arXiv:2106.08254, and MAE's fine-tuning (facebookresearch/mae, util/lr_decay.py).
"""

import re
from typing import Any

from fusmae.model.classifier import FusMAEClassifier
from fusmae.training.optim import parameter_groups

_BLOCK = re.compile(r"^encoder\.(?:late\.\w+\.)?blocks\.(\d+)\.")


def layer_of(name: str, model: FusMAEClassifier) -> int:
    """The layer of a parameter: 0 embeddings and tokens, 1 to depth the blocks, depth + 1 the head.

    XAttnEncoder is block 1, so all sensors' embeddings lie below it and share one rate. A norm
    after the last block, which published models have, belongs to the head, as in MAE.
    """
    depth = model.encoder.config.depth
    if not name.startswith("encoder.") or name.startswith("encoder.norm."):
        return depth + 1
    if name.startswith("encoder.xattn."):
        return 1
    block = _BLOCK.match(name)
    if block is None:
        return 0
    return int(block[1]) + 1 + model.encoder.config.has_xae


def layer_groups(
    model: FusMAEClassifier, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups that hold every trainable parameter once, each with its `lr_scale`.

    The scale is layer_decay ** (depth + 1 - layer), so 1 for the head. What weight decay applies
    to is `parameter_groups`' business.
    """
    top = model.encoder.config.depth + 1
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for group in parameter_groups(model, weight_decay):
        for parameter in group["params"]:
            layer = layer_of(names[id(parameter)], model)
            entry = groups.setdefault(
                (layer, group["weight_decay"]),
                {
                    "params": [],
                    "weight_decay": group["weight_decay"],
                    "lr_scale": layer_decay ** (top - layer),
                },
            )
            entry["params"].append(parameter)
    return list(groups.values())
