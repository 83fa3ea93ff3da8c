"""The field's ways of pretraining, on the model and the samples of gpu_pretrain.py's case A."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_pretrain_bench import CHANNELS, SENSORS, Bench, Images, Setting
from torch.utils.data import DataLoader, Dataset, RandomSampler

from fusmae.config import DataConfig
from fusmae.data import Preprocess, SplitReader
from fusmae.model import FusMAE, Masks


def plain(bench: Bench, batches: Iterator[tuple[Images, Masks]], autocast: bool) -> dict[str, Any]:
    """The loop of MAE's and MultiMAE's engine_pretrain.py: the loss on the host at each step."""
    model = FusMAE(bench.setting.model, CHANNELS).to(bench.device)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05)

    def step() -> None:
        images, masks = next(batches)
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=autocast):
            loss = model(images, masks)["loss"]
        if not math.isfinite(loss.item()):
            sys.exit("the loss is not finite")
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        bench.wait()

    return bench.figures(bench.time(step))


def deepspeed_default(bench: Bench) -> dict[str, Any]:
    """bf16 and ZeRO-1 with DeepSpeed's defaults; torch's Adam, since its own needs a compiler."""
    # tests/ is no package of ours: the trainer alone has one door to DeepSpeed.
    import deepspeed

    table = {
        "train_micro_batch_size_per_gpu": bench.micro_batch,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
    }
    model = FusMAE(bench.setting.model, CHANNELS)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05)
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=table)
    batches = bench.batches()

    def step() -> None:
        images, masks = next(batches)
        losses = engine({name: image.bfloat16() for name, image in images.items()}, masks)
        engine.backward(losses["loss"])
        engine.step()

    return bench.figures(bench.time(step))


class UpsampledFiles(Dataset[Images]):
    """A sample as the field's loaders give it: resampled to the model's grid in float32."""

    def __init__(self, setting: Setting) -> None:
        self._reader = SplitReader(Path(setting.dataset), "train")
        sizes_px = setting.model.sizes_px(SENSORS)
        self._preprocess = Preprocess(self._reader.manifest, DataConfig().bands, sizes_px)

    def __len__(self) -> int:
        return self._reader.num_samples

    def __getitem__(self, row: int) -> Images:
        specs = self._reader.arrays
        arrays = {spec.name: np.empty((1, *spec.shape), np.dtype(spec.dtype)) for spec in specs}
        self._reader.read_into(np.array([row]), arrays)
        images = self._preprocess({name: torch.from_numpy(a) for name, a in arrays.items()})
        return {sensor: image[0] for sensor, image in images.items()}


def upsampled_batches(bench: Bench) -> Iterator[tuple[Images, Masks]]:
    samples = UpsampledFiles(bench.setting)
    loader = DataLoader(
        samples,
        batch_size=bench.micro_batch,
        # One endless epoch: a small set's many ends would hold its workers up.
        sampler=RandomSampler(samples, replacement=True, num_samples=10**8),
        num_workers=bench.setting.workers,
        pin_memory=bench.device.type == "cuda",
        worker_init_fn=lambda _: torch.set_num_threads(1),
    )
    positions = torch.arange(bench.micro_batch, device=bench.device)
    for images in loader:
        moved = {name: i.to(bench.device, non_blocking=True) for name, i in images.items()}
        yield moved, bench.masks(positions)
