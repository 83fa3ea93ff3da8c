"""AdamW and its parameter groups."""

from typing import Any

import torch
from torch import nn

from fusmae.config import OptimConfig


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices and kernels only.

    Not to biases, norms (one-dimensional), learned tokens and learned positions, as in MAE's and
    timm's parameter groups.
    """
    return parameter.ndim > 1 and not name.endswith(("bias", "token", "pos_embed"))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, with and without weight decay, that hold every trainable parameter once.

    Each parameter's place depends on its name and shape alone; groups keep the model's order.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if _decays(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not _decays(n, p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def torch_adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """torch's fused AdamW: one kernel a dtype, and no compiler on the user's machine.

    The learning rate is set anew at every step, so the schedule's first value stands here.
    """
    return torch.optim.AdamW(
        parameter_groups(model, optim.weight_decay),
        lr=optim.warmup_lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )
