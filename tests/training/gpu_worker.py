"""One rank on a GPU: the body of the training loop, in which any wait of the host is an error.

    python gpu_worker.py RECIPE DATA DS_JSON [RECIPE_KEY=VALUE ...]

In the third of four steps a pixel is not finite. On a CPU waits are let through.
"""

import sys
from pathlib import Path

import torch

from fusmae.model import draw_masks
from fusmae.training.engine import join_ranks
from fusmae.training.ledger import Ledger
from fusmae.training.metrics import Stopwatch
from fusmae.training.run import read_run
from fusmae.training.start import build, next_batch


def main() -> None:
    recipe_path, data, ds_json, *changes = sys.argv[1:]
    here = Path(ds_json).parent
    run = read_run(Path(recipe_path), [data], here, here / "run", Path(ds_json), tuple(changes))
    recipe, device = run.recipe, join_ranks(run.ranks, deterministic=False)
    engine, preprocess, loader = build(run, device)
    sensors, batches = list(recipe.data.bands), iter(loader)
    watch, ledger = Stopwatch(device), Ledger()
    for step in range(4):
        if step and device.type == "cuda":  # the first step makes buffers, and compiles
            torch.cuda.set_sync_debug_mode("error")
        replaced = -loader.num_replaced
        with watch.waiting():
            batch = next_batch(batches, 0)
        images = preprocess(batch.parts)
        masks = draw_masks(recipe.model, sensors, recipe.seed, batch.positions)
        if step == 2:
            images["s2"][-1].fill_(float("nan"))
        losses = engine.forward_backward(images, masks)
        update = engine.update(run.schedule.rate(step))
        ledger.add(step + 1, [losses], update, [batch.sample_ids], replaced + loader.num_replaced)
        watch.add(recipe.optim.global_batch, run.flops_of(sensors))
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    results, *_ = ledger.read(engine, stop=False)
    print("skipped", [int(one.bad_rows is not None) for one in results], engine.adam_steps, "steps")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
