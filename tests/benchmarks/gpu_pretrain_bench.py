"""What every case of gpu_pretrain.py takes: its setting, the stream, masks, and a clock."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor

from fusmae.config import DataConfig, ModelConfig, OptimConfig, PretrainRecipe
from fusmae.model import Masks, draw_masks
from fusmae.model.budget import count_flops
from fusmae.training.engine import join_ranks
from fusmae.training.metrics import peak_flops
from fusmae.training.ranks import Ranks
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
