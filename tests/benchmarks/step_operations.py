"""How many operations an optimiser step dispatches, and how many of them wait for the device.

    python tests/benchmarks/step_operations.py

From after the backward pass to before the next forward pass, clipping included, for a model of
257 small parameters on a CPU: the numbers do not depend on the parameters' sizes. The table of
ds_configs/README.md. `torchrun --nproc-per-node 2 ...` counts on two ranks.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))

import deepspeed
import torch
from engine_worker import CHANNELS, MODEL
from operations import Operations

from fusmae.config import OptimConfig
from fusmae.model import FusMAE, draw_masks
from fusmae.training.ds_config import plan_engine
from fusmae.training.engine import Engine, join_ranks
from fusmae.training.ranks import ranks_from_environment

DEEP = dataclasses.replace(MODEL, depth=12, decoder_depth=2)
BF16 = {"bf16": {"enabled": True}}
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
OFFLOAD = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
# DeepSpeed marks the process under autocast, so what is without it comes first.
CONFIGS: dict[str, dict[str, Any]] = {
    **{f"stage {n}, bf16": {**BF16, "zero_optimization": {"stage": n}} for n in (1, 2, 3)},
    "stage 2, bf16, offload": {**BF16, "zero_optimization": OFFLOAD},
    **{f"stage {n}, autocast": {**AUTOCAST, "zero_optimization": {"stage": n}} for n in range(4)},
}


def inputs(dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], Any]:
    images = {sensor: torch.randn(2, n, 12, 12, dtype=dtype) for sensor, n in CHANNELS.items()}
    return images, draw_masks(MODEL, list(CHANNELS), 0, torch.arange(2))


def of_ours(table: dict[str, Any], world_size: int) -> Operations:
    optim = OptimConfig(global_batch=2 * world_size, epochs=1, warmup_epochs=0.5, clip_norm=1.0)
    plan = plan_engine({"train_micro_batch_size_per_gpu": 2} | table, optim, world_size)
    engine = Engine(FusMAE(DEEP, CHANNELS), optim, plan)
    for _ in range(2):  # the first makes buffers
        engine.forward_backward(*inputs(torch.float32))
        with Operations() as counted:
            engine.update(1e-3)
    return counted


def of_deepspeed() -> Operations:
    """Its own step at its defaults, as a user gets it with bf16 and stage 1."""
    table = {"train_micro_batch_size_per_gpu": 2, **BF16, "zero_optimization": {"stage": 1}}
    model = FusMAE(DEEP, CHANNELS)
    adam = torch.optim.AdamW(model.parameters(), fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=table)
    for _ in range(2):
        engine.backward(engine(*inputs(torch.bfloat16))["loss"])
        with Operations() as counted:
            engine.step()
    return counted


def main() -> None:
    ranks = ranks_from_environment()
    join_ranks(ranks, deterministic=False)
    results = {"DeepSpeed's own, stage 1, bf16": of_deepspeed()}
    results |= {name: of_ours(table, ranks.world_size) for name, table in CONFIGS.items()}
    if ranks.rank == 0:
        print(f"{'configuration':<32} operations  waits   ({ranks.world_size} ranks)")
        for name, counted in results.items():
            print(f"{name:<32} {counted.total:>10}  {counted.waits:>5}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
