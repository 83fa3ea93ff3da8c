"""The DeepSpeed json: what a user may say in it, and what a recipe adds to it.

The json owns what must not change a result (micro-batch, ZeRO, precision, offload, which
fused Adam), the recipe everything else; each number has one owner.
"""

import copy
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fusmae.config import OptimConfig

Precision = Literal["fp32", "autocast", "bf16"]

# Keys of the json that a recipe owns or that follow from it, with what to do instead.
_OWNED_ELSEWHERE = {
    "train_batch_size": "the recipe owns it as optim.global_batch",
    "gradient_accumulation_steps": "it follows from optim.global_batch, micro-batch and ranks",
    "gradient_clipping": "the recipe owns it as optim.clip_norm",
    "scheduler": "the recipe owns warm-up and decay in [optim]",
}
# What else may stand in the json. DeepSpeed itself ignores a key that it does not know, and
# some that it knows (gradient_allreduce_op, managed_gradient_accumulation) would change results.
_ALLOWED = (
    "train_micro_batch_size_per_gpu",
    "zero_optimization",
    "torch_autocast",
    "bf16",
    "fp16",  # refused by name, with what to use instead
    "optimizer",
    "data_types",
    "communication_data_type",
    "aio",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
)
# 100 MB of fp32 gradients a bucket. DeepSpeed's 5e8 elements never fill before the end of
# the backward pass of a model of 100 million parameters: nothing would overlap.
_BUCKET_ELEMENTS = 25_000_000


@dataclass(frozen=True)
class EnginePlan:
    """A complete DeepSpeed configuration and the facts about it that the trainer uses.

    `deepspeed_adam` tells whether DeepSpeed's own fused Adam (compiled on first use) takes
    the place of torch's, `offload` whether the optimiser's state lies in host memory, and
    `device_guard` whether steps are clipped and skipped on the device by `StepGuard`; otherwise
    DeepSpeed does so, and waits for the device several times a step.
    """

    config: dict[str, Any]
    micro_batch: int
    accumulation: int
    stage: int
    precision: Precision
    deepspeed_adam: bool
    offload: bool
    device_guard: bool


def read_ds_config(path: Path) -> dict[str, Any]:
    """The json as it is in the file.

    Raises:
        ValueError: the file is missing, not JSON or not an object.
    """
    try:
        table = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the DeepSpeed config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds a {type(table).__name__}, expected an object")
    return table


def plan_engine(table: dict[str, Any], optim: OptimConfig, world_size: int) -> EnginePlan:
    """The user's json completed for this recipe and this many ranks.

    Raises:
        ValueError: an unknown key or one that the recipe owns, no micro-batch or one that does
            not divide the global batch, or a precision that is refused.
    """
    for key, owner in _OWNED_ELSEWHERE.items():
        if key in table:
            raise ValueError(f"remove {key} from the DeepSpeed config: {owner}")
    for key in table:
        if key not in _ALLOWED:
            near = difflib.get_close_matches(key, _ALLOWED, n=1)
            hint = f"; did you mean {near[0]}?" if near else f" (known: {', '.join(_ALLOWED)})"
            raise ValueError(f"unknown key {key} in the DeepSpeed config{hint}")
    zero = table.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in range(4):
        raise ValueError(f"zero_optimization.stage = {stage!r} must be 0, 1, 2 or 3")
    precision = _precision(table, stage)
    deepspeed_adam = _wants_deepspeed_adam(table)
    if deepspeed_adam and stage == 0:
        raise ValueError(
            "DeepSpeed's AdamW with ZeRO stage 0 is refused, since nothing would skip a step whose "
            "gradients are not finite: remove the optimizer section for torch's fused AdamW"
        )
    micro_batch = table.get("train_micro_batch_size_per_gpu")
    if type(micro_batch) is not int or micro_batch < 1:
        raise ValueError(
            f"train_micro_batch_size_per_gpu = {micro_batch!r} in the DeepSpeed config must be "
            "a whole number, the samples that one rank holds at a time"
        )
    accumulation = _accumulation(optim.global_batch, micro_batch, world_size)

    offload = "offload_optimizer" in zero
    device_guard = not (deepspeed_adam or offload or stage == 3)

    config = copy.deepcopy(table)
    config.pop("optimizer", None)  # built from the recipe's numbers and handed over
    config["train_batch_size"] = optim.global_batch
    config["gradient_accumulation_steps"] = accumulation
    # DeepSpeed's own default would be 1.0.
    config["gradient_clipping"] = 0.0 if device_guard else optim.clip_norm
    # Its timers synchronise the device twice a step.
    config["timers"] = {"throughput": {"enabled": False, "synchronized": False}}
    config["zero_optimization"] = {"reduce_bucket_size": _BUCKET_ELEMENTS, **zero}
    # One guard, not two: DeepSpeed's costs thousands of operations and waits for the device.
    config["zero_optimization"]["compute_grad_norm"] = stage not in (1, 2) or not device_guard
    if precision == "bf16":
        config["bf16"]["check_grad_overflow"] = not device_guard
    if offload and not deepspeed_adam:
        config["zero_force_ds_cpu_optimizer"] = False
    return EnginePlan(
        config, micro_batch, accumulation, stage, precision, deepspeed_adam, offload, device_guard
    )


def _precision(table: dict[str, Any], stage: int) -> Precision:
    """The precision asked for, or a ValueError with the one to use instead."""
    autocast = table.get("torch_autocast", {})
    if table.get("fp16", {}).get("enabled"):
        raise ValueError("fp16 is not supported: use torch_autocast with dtype bfloat16, or bf16")
    if autocast.get("enabled"):
        if autocast.get("dtype") != "bfloat16":
            raise ValueError(
                f"torch_autocast.dtype = {autocast.get('dtype')!r} must be 'bfloat16': float16 "
                "would need loss scaling"
            )
        if stage and "communication_data_type" in table:
            raise ValueError(
                f"communication_data_type with torch_autocast and ZeRO stage {stage} is refused, "
                "since DeepSpeed ignores it and sums gradients in bfloat16: remove it, or use "
                "stage 0, which sums in fp32"
            )
        if table.get("bf16", {}).get("enabled"):
            raise ValueError("bf16 and torch_autocast are both enabled: choose one")
        return "autocast"
    if not table.get("bf16", {}).get("enabled"):
        return "fp32"
    if stage == 0:
        raise ValueError(
            "bf16 with ZeRO stage 0 is refused: DeepSpeed makes a dummy step at the start, and "
            "Adam's first update is wrong; use torch_autocast with stage 0, or bf16 with stage 1"
        )
    if stage == 1 and table.get("data_types", {}).get("grad_accum_dtype") == "fp32":
        raise ValueError(
            "bf16 with ZeRO stage 1 and data_types.grad_accum_dtype fp32 selects an optimiser "
            "of DeepSpeed that is not supported; use torch_autocast, or stage 2"
        )
    return "bf16"


def _wants_deepspeed_adam(table: dict[str, Any]) -> bool:
    """Whether the json's optimizer section asks for DeepSpeed's fused Adam."""
    section = table.get("optimizer")
    if section is None:
        return False
    if section.get("type") != "AdamW":
        raise ValueError(
            f"optimizer.type = {section.get('type')!r} in the DeepSpeed config must be 'AdamW' "
            "(DeepSpeed's fused one); without the section it is torch's fused AdamW"
        )
    parameters = section.get("params", {})
    numbers = sorted(set(parameters) - {"torch_adam"})
    if numbers:
        raise ValueError(
            f"remove optimizer.params.{numbers[0]} from the DeepSpeed config: the recipe owns "
            "the optimiser's numbers in [optim]"
        )
    return not parameters.get("torch_adam", False)


def _accumulation(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro-batches of one rank in a step."""
    at_once = micro_batch * world_size
    if global_batch % at_once == 0:
        return global_batch // at_once
    if global_batch % world_size:
        raise ValueError(
            f"optim.global_batch = {global_batch} does not divide among {world_size} ranks; "
            "use a number of ranks that divides it"
        )
    share = global_batch // world_size
    below = max(n for n in range(1, min(micro_batch, share) + 1) if share % n == 0)
    raise ValueError(
        f"optim.global_batch = {global_batch} is not a multiple of micro-batch {micro_batch} x "
        f"{world_size} ranks; set train_micro_batch_size_per_gpu to a divisor of {share}, "
        f"such as {below}"
    )
