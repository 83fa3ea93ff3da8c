"""The optimiser's step without a wait for the device: norm, clipping and guard stay on it.

For torch's fused AdamW without offload at ZeRO stages 0, 1 and 2.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Update(NamedTuple):
    """What a step came to: scalars, float32, on the device until somebody needs them.

    norm: of the gradients of all ranks, before clipping; not finite where the step was skipped.
    skipped: 1 if nothing was changed, else 0.
    """

    norm: Tensor
    skipped: Tensor


class StepGuard:
    """Clips the next step of torch's fused AdamW, or makes it do nothing, without a branch here.

    AdamW divides the gradients by its `grad_scale` inside its kernel, and leaves weights, moments
    and its count of steps alone where `found_inf` is 1: what `torch.amp.GradScaler` is built on.
    The host never learns the norm, so it never waits for it.
    """

    def __init__(self, adam: torch.optim.AdamW, clip_norm: float, in_parts: bool) -> None:
        """Guard the steps of `adam`.

        Args:
            adam: the optimiser; `fused`.
            clip_norm: the largest norm, 0 for no clipping.
            in_parts: whether each rank has a part of the gradients, or every rank all of them.
        """
        self._adam: Any = adam
        self._clip_norm = clip_norm
        self._ranks = torch.distributed.get_world_size()
        self._weight = 1.0 if in_parts else 1 / self._ranks
        self._weights = torch.empty(0)

    @torch.no_grad()
    def judge(self, gradients: list[Tensor], losses: list[Tensor]) -> Update:
        """Set up the next step; called by all ranks together, it comes to the same on each.

        The step is skipped where the norm, or a loss of any rank, is not finite.

        Args:
            gradients: this rank's, of one dtype.
            losses: of this rank's micro-batches, float32 scalars.
        """
        norms = torch._foreach_norm(gradients, 2, torch.float32)
        values = torch.stack([*norms, *losses])
        if len(self._weights) != len(values):
            # A loss has no weight, but 0 times what is not finite is not finite either.
            self._weights = torch.zeros_like(values)
            self._weights[: len(norms)] = self._weight
        square = torch.dot(values * self._weights, values)
        if self._ranks > 1:
            torch.distributed.all_reduce(square)
        norm = square.sqrt()
        skipped = (norm - norm).ne_(0)  # in place, so that it stays a float
        self._adam.found_inf = skipped
        if self._clip_norm:
            self._adam.grad_scale = (norm / self._clip_norm).clamp(min=1.0)
        return Update(norm, skipped)


class SplitStep:
    """The step of ZeRO 1 and 2, in the place of that of DeepSpeed's `DeepSpeedZeroOptimizer`.

    Each rank holds a flat part of each parameter group; it updates that and gathers the others'.
    DeepSpeed 0.19.8 does the same, but flattens the gradients through a view of each parameter's,
    and points every weight to where it points already: hundreds of operations. The attribute
    names are DeepSpeed's. Its engine calls `step`, then drops the parameters' gradients.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        parts = wrapper.single_partition_of_fp32_groups
        self._flat = [torch.zeros_like(part.detach()) for part in parts]
        for part, gradient in zip(parts, self._flat, strict=True):
            part.grad = gradient
        self._places: list[Tensor] = []
        wrapper.step = self.step

    def gradients(self) -> list[Tensor]:
        """What the backward pass has left of this rank's part, fp32, one flat tensor a group."""
        groups = self._wrapper.averaged_gradients
        pieces = [groups[number] for number in range(len(self._flat))]
        if not self._places:  # the pieces have the same shapes at every step
            for flat, group in zip(self._flat, pieces, strict=True):
                places = torch.split(flat, [piece.numel() for piece in group])
                self._places += [p.view(q.shape) for p, q in zip(places, group, strict=True)]
        torch._foreach_copy_(self._places, [piece for group in pieces for piece in group])
        return self._flat

    def step(self) -> None:
        """Update this rank's parts from `gradients`, and gather all parts."""
        wrapper = self._wrapper
        wrapper.optimizer.step()
        wrapper.update_lp_params()
        for number in range(len(self._flat)):
            wrapper.averaged_gradients[number] = wrapper.all_grad_tensors[number] = None
