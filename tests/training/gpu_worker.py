"""One rank on a GPU: whole steps of the tiny model, in which any wait of the host is an error.

python gpu_worker.py STAGE
"""

import sys

import torch
from engine_worker import CHANNELS, GLOBAL_BATCH, MODEL, RATES, images_at, make_model, optim_of

from fusmae.model import draw_masks
from fusmae.training.ds_config import plan_engine
from fusmae.training.engine import Engine, join_ranks
from fusmae.training.ranks import ranks_from_environment


def main() -> None:
    device = join_ranks(ranks_from_environment(), deterministic=False)
    optim = optim_of(clip_norm=1.0)
    table = {
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH,
        "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
        "zero_optimization": {"stage": int(sys.argv[1])},
    }
    engine = Engine(make_model(), optim, plan_engine(table, optim, 1))
    updates = []
    for step, rate in enumerate(RATES):
        images = {sensor: image.to(device) for sensor, image in images_at(step).items()}
        if step == 2:
            images["s2"][-1] = float("nan")
        positions = torch.arange(GLOBAL_BATCH, device=device)
        masks = draw_masks(MODEL, list(CHANNELS), 0, positions)
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first makes buffers
        engine.forward_backward(images, masks)
        updates.append(engine.update(rate))
        torch.cuda.set_sync_debug_mode("default")
    print("skipped", [int(update.skipped) for update in updates], "steps", engine.adam_steps)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
