"""One rank of the engine tests: trains the tiny model under each named configuration.

    deepspeed --num_accelerators 2 engine_worker.py --plan plan.json --out FOLDER

`plan.json` lists cases: {"name", "ds", "clip_norm", "steps", "restore", "save", "shown",
"validate", "spoil", "backend"}, the last one of torch.compile. Rank 0 writes FOLDER/NAME.json with
each step's loss, norm of the gradients, and operations, of the update and of it all, what the last
step sent, and the graphs that torch.compile captured. In step `spoil` the last rank alone sees a
pixel that is not finite.
"""

import argparse
import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from fusmae.config import ModelConfig, OptimConfig, RunConfig
from fusmae.model import FusMAE, draw_masks
from fusmae.training.checkpoint import read_state, restore_checkpoint
from fusmae.training.ds_config import plan_engine
from fusmae.training.engine import Engine, join_ranks
from fusmae.training.ranks import ranks_from_environment
from fusmae.training.saving import Saver

GLOBAL_BATCH = 8
RATES = (1e-3, 3e-3, 2e-3, 3e-3)
CHANNELS = {"s1": 2, "s2": 3}
# Odd sizes: neither 2 ranks nor ZeRO's alignment divide the parameters evenly.
MODEL = ModelConfig(
    preset="tiny",
    image_px=12,
    patch_px=3,
    width=20,
    depth=2,
    heads=2,
    decoder_width=12,
    decoder_depth=1,
    decoder_heads=2,
)


def optim_of(clip_norm: float) -> OptimConfig:
    return OptimConfig(global_batch=GLOBAL_BATCH, epochs=1, warmup_epochs=0.5, clip_norm=clip_norm)


def images_at(step: int) -> dict[str, torch.Tensor]:
    """The global batch of a step, the same on every rank."""
    generator = torch.Generator().manual_seed(1000 + step)
    return {
        sensor: torch.randn(GLOBAL_BATCH, count, 12, 12, generator=generator)
        for sensor, count in CHANNELS.items()
    }


def make_model() -> FusMAE:
    torch.manual_seed(0)
    return FusMAE(MODEL, CHANNELS)


def state_of(engine: Engine) -> list[torch.Tensor]:
    """Weights, moments and Adam's count."""
    tensors = [part.clone() for _, whole in engine.states() for part in whole]
    return [*tensors, torch.tensor(engine.adam_steps)]


def run_case(case: dict[str, Any], out: Path, rank: int, world_size: int) -> None:
    from operations import Operations  # here: tests import this file as one of their package

    optim = optim_of(case.get("clip_norm", 0.0))
    plan = plan_engine(case["ds"], optim, world_size)
    model = make_model()
    if "backend" in case:
        torch._dynamo.reset()  # else it takes the code of the case before
        model.forward = torch.compile(model.forward, backend=case["backend"], dynamic=False)
    engine = Engine(model, optim, plan)
    graphs = -counters["stats"]["unique_graphs"]
    first, losses, norms, skipped, operations, whole = 0, [], [], [], [], []
    sent: Counter[str] = Counter()
    validated, trained, kept = [], [], None
    if "restore" in case:
        folder = out / case["restore"]
        restore_checkpoint(folder, engine)
        first = read_state(folder)["step"]
    for step in range(first, case["steps"]):
        images, total, passes = images_at(step), 0.0, Operations()
        for micro in range(plan.accumulation):
            start = (rank * plan.accumulation + micro) * plan.micro_batch
            rows = slice(start, start + plan.micro_batch)
            positions = torch.arange(GLOBAL_BATCH)[rows] + step * GLOBAL_BATCH
            with passes:
                masks = draw_masks(MODEL, list(CHANNELS), 0, positions)
            shown = case["shown"][step] if "shown" in case else list(CHANNELS)
            mine = {sensor: images[sensor][rows] for sensor in shown}
            is_spoilt = case.get("spoil") == step and rank == world_size - 1
            if is_spoilt and micro == plan.accumulation - 1:
                mine["s2"][-1, 0, 5, 7] = float("inf")
            if "validate" in case:
                validated.append(float(engine.losses(mine, masks)["loss"]))
            # Under a dispatch mode torch.compile does nothing.
            with nullcontext() if "backend" in case else passes:
                given = engine.forward_backward(mine, masks)
            loss = float(given["loss"])
            total += loss
            trained.append(loss)
        before = state_of(engine) if case.get("spoil") == step else []
        with Operations() as counted:
            update = engine.update(RATES[step])
        if before:
            kept = all(map(torch.equal, before, state_of(engine)))
        operations.append([counted.total, counted.waits])
        whole.append([passes.total + counted.total, passes.waits + counted.waits])
        sent = passes.sent + counted.sent
        norms.append(float(update.norm))
        skipped.append(float(update.skipped))
        losses.append(engine.sum_over_ranks([total])[0] / world_size / plan.accumulation)
    if "save" in case:
        with Saver(out / case["save"], engine, RunConfig(), rank, say=print) as saver:
            saver.save({"step": case["steps"]})
            saver.finish()
    if rank == 0:
        result = {"losses": losses, "norms": norms, "validated": validated, "trained": trained}
        result |= {"skipped": skipped, "operations": operations, "kept": kept}
        result |= {"whole": whole, "sent": sent}
        result |= {"graphs": graphs + counters["stats"]["unique_graphs"]}
        (out / f"{case['name']}.json").write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--local_rank", type=int)
    arguments = parser.parse_args()
    ranks = ranks_from_environment()
    join_ranks(ranks, deterministic=False)
    for case in json.loads(arguments.plan.read_text()):
        run_case(case, arguments.out, ranks.rank, ranks.world_size)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
