"""What one process of gpu_pretrain.py measures: a case's name in, its figures out as JSON.

Each case is a process of its own: DeepSpeed's autocast marks the one it runs in, compiled code
stays, and memory of one would count for the next.
"""

import gc
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernel_time
import machine
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from fusmae.config import DataConfig, ModelConfig, OptimConfig, PretrainRecipe
from fusmae.data import Preprocess, SplitReader
from fusmae.model import FusMAE, Masks, draw_masks
from fusmae.model.budget import count_flops
from fusmae.training.ds_config import plan_engine
from fusmae.training.engine import Engine, compile_model, join_ranks
from fusmae.training.ledger import Ledger
from fusmae.training.metrics import Stopwatch, peak_flops
from fusmae.training.ranks import Ranks, ranks_from_environment
from fusmae.training.source import make_preprocess, open_stream, read_sources

CHANNELS = {"s1": 2, "s2": 12}
SENSORS = list(CHANNELS)
# (image_px, patch_px, samples held at once on a GPU of 80 GB; halved until they fit)
SHAPES = {"A": (224, 16, 1024), "B": (128, 16, 2048), "C": (120, 8, 512)}
READ_EVERY = 10
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}

Images = dict[str, Tensor]
Step = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """What the command line comes to, and what it means for a case."""

    case: str
    dataset: str
    device: str
    tiny: bool
    seconds: float
    workers: int

    @property
    def shape(self) -> str:
        return self.case[0] if self.case[0] in SHAPES else "A"

    @property
    def model(self) -> ModelConfig:
        image_px, patch_px, _ = SHAPES[self.shape]
        preset = "tiny" if self.tiny else "base"
        return ModelConfig(preset=preset, image_px=image_px, patch_px=patch_px)

    @property
    def micro_batch(self) -> int:
        if self.tiny:
            return 4
        # Workers hand batches over in shared memory: 2 each, of 2.8 MB a sample.
        return 128 if self.case.endswith("workers") else SHAPES[self.shape][2]


class Bench:
    """The pieces that every way of training takes: the stream, masks, and a clock."""

    def __init__(self, setting: Setting, micro_batch: int, ranks: Ranks) -> None:
        self.setting, self.micro_batch = setting, micro_batch
        self.device = join_ranks(ranks, deterministic=setting.case.endswith("deterministic"))
        self.optim = OptimConfig(
            global_batch=micro_batch, epochs=1, warmup_epochs=0.5, clip_norm=1.0
        )
        recipe = PretrainRecipe(model=setting.model, data=DataConfig(), optim=self.optim)
        sources = read_sources(recipe, [Path(setting.dataset)])
        self.stream = open_stream(sources, 0, ranks, micro_batch, self.device)
        sizes_px = setting.model.sizes_px(SENSORS)
        self.preprocess = make_preprocess(sources, sizes_px).to(self.device)
        # Of each measurement: compiling and choosing kernels is in the first one's.
        self.first_step_s: list[float] = []
        torch.manual_seed(0)

    def masks(self, positions: Tensor) -> Masks:
        return draw_masks(self.setting.model, SENSORS, 0, positions)

    def batches(self) -> Iterator[tuple[Images, Masks]]:
        """Samples of the stream, as the trainer takes them."""
        for batch in self.stream:
            yield self.preprocess(batch.parts), self.masks(batch.positions)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, step: Step) -> dict[str, float]:
        """Seconds a step: of as many as fill the time, in three rounds, after a warm-up."""
        started = time.perf_counter()
        step()
        self.wait()
        self.first_step_s.append(round(time.perf_counter() - started, 2))
        for _ in range(0 if self.setting.tiny else 5):
            step()
        self.wait()
        started = time.perf_counter()
        step()
        self.wait()
        once = time.perf_counter() - started
        count = max(1 if self.setting.tiny else READ_EVERY, round(self.setting.seconds / 3 / once))
        rounds = []
        for _ in range(3):
            started = time.perf_counter()
            for _ in range(count):
                step()
            self.wait()
            rounds.append((time.perf_counter() - started) / count)
        return machine.spread(rounds, digits=6)

    def figures(self, step_s: dict[str, float]) -> dict[str, Any]:
        """What a step's seconds come to."""
        samples_per_s = self.micro_batch / step_s["median"]
        flops = samples_per_s * count_flops(self.setting.model, CHANNELS).training
        on_gpu = self.device.type == "cuda"
        peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else None
        memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        return {
            "samples_per_s": round(samples_per_s, 1),
            "step_s": step_s,
            "tflops": round(flops / 1e12, 4),
            "mfu": round(flops / peak, 4) if peak else None,
            "micro_batch": self.micro_batch,
            "first_step_s": self.first_step_s[0],
            "peak_memory_gb": round(memory, 2) if memory else None,
        }


def ours(bench: Bench) -> dict[str, Any]:
    """The trainer's step: from the stream, on data that stays on the device, the model alone."""
    plan = plan_engine(
        {"train_micro_batch_size_per_gpu": bench.micro_batch} | AUTOCAST, bench.optim, 1
    )
    model = FusMAE(bench.setting.model, CHANNELS)
    if bench.setting.case.endswith("compiled"):
        compile_model(model)
        for one in bench.preprocess.sources:
            compile_model(one)
    engine = Engine(model, bench.optim, plan)
    ledger, made = Ledger(), 0

    def train(images: Images, masks: Masks, sample_ids: Tensor) -> None:
        nonlocal made
        losses = engine.forward_backward(images, masks)
        update = engine.update(1e-5)
        made += 1
        ledger.add(made, [losses], update, [sample_ids], 0)
        if made % READ_EVERY == 0:
            ledger.read(engine, stop=False)

    def from_stream() -> None:
        with watch.waiting():
            batch = next(bench.stream)
        train(bench.preprocess(batch.parts), bench.masks(batch.positions), batch.sample_ids)
        watch.add(bench.micro_batch, 0)

    kept = next(bench.stream)

    def resident() -> None:
        train(bench.preprocess(kept.parts), bench.masks(kept.positions), kept.sample_ids)

    images, masks = bench.preprocess(kept.parts), bench.masks(kept.positions)

    def model_alone() -> None:
        train(images, masks, kept.sample_ids)

    resident_s, alone_s = bench.time(resident), bench.time(model_alone)
    watch = Stopwatch(bench.device)
    result = bench.figures(step_s := bench.time(from_stream))
    result |= {
        "resident_step_s": resident_s,
        "model_alone_step_s": alone_s,
        "data_wait": round(1 - resident_s["median"] / step_s["median"], 4),
        "gpu_idle_before_data": round(watch.read()["data_wait"], 4),
    }
    if bench.device.type == "cuda":
        result["kernel_time"] = kernel_time.account(resident)
    return result


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


def loader_alone(bench: Bench) -> dict[str, Any]:
    """Batches of the stream as they reach the device, nothing done with them."""
    step_s = bench.time(lambda: next(bench.stream) and None)
    return {
        "samples_per_s": round(bench.micro_batch / step_s["median"], 1),
        "step_s": step_s,
        "micro_batch": bench.micro_batch,
    }


def best_product(setting: Setting) -> dict[str, Any]:
    """The fastest bfloat16 matrix product of random numbers, over sizes of a ViT's and squares."""
    device = torch.device(setting.device)
    sizes = [(256, 256, 256), (512, 768, 768)] if setting.tiny else []
    for side in () if setting.tiny else (4096, 8192, 16384):
        sizes.append((side, side, side))
    for rows in () if setting.tiny else (25_344, 50_688):  # 256 and 512 samples of 99 tokens
        sizes += [(rows, 768, 768), (rows, 768, 3072), (rows, 3072, 768)]
    found = {}
    for m, k, n in sizes:
        left = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        right = torch.randn(k, n, device=device, dtype=torch.bfloat16)
        count = max(1, int((1e9 if setting.tiny else 2e14) / (2 * m * k * n)))
        for timed in (False, True):
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(count):
                product = left @ right
            float(product[0, 0])
            if timed:
                seconds = (time.perf_counter() - started) / count
                found[f"{m} x {k} x {n}"] = round(2 * m * k * n / seconds / 1e12, 4)
    return {"tflops": max(found.values()), "by_size": found}


CASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "loader": loader_alone,
    "A, compiled": ours,
    "A": ours,
    "C": ours,
    "B": ours,
    "peer: float32": lambda bench: plain(bench, bench.batches(), autocast=False),
    "peer: AMP": lambda bench: plain(bench, bench.batches(), autocast=True),
    "peer: AMP, float32 batches from workers": lambda bench: plain(
        bench, upsampled_batches(bench), autocast=True
    ),
    "peer: DeepSpeed's defaults": deepspeed_default,
    "C, compiled": ours,
    "B, compiled": ours,
    "A, deterministic": ours,
}


def measure(setting: Setting) -> dict[str, Any]:
    """A case's figures, with the largest micro-batch that fits."""
    if setting.case == "product":
        return best_product(setting)
    ranks, micro_batch = ranks_from_environment(), setting.micro_batch
    while True:
        try:
            return CASES[setting.case](Bench(setting, micro_batch, ranks))
        except torch.cuda.OutOfMemoryError:
            micro_batch //= 2
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    figures = measure(Setting(**json.loads(sys.argv[1])))
    print("figures:" + json.dumps(figures))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
