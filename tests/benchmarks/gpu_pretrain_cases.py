"""What one process of gpu_pretrain.py measures: a case's name in, its figures out as JSON.

Each case is a process of its own: DeepSpeed's autocast marks the one it runs in, compiled code
stays, and memory of one would count for the next.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import kernel_time
import torch
from gpu_pretrain_bench import AUTOCAST, CHANNELS, READ_EVERY, Bench, Images, Setting
from gpu_pretrain_peers import deepspeed_default, plain, upsampled_batches
from gpu_pretrain_users import paper
from torch import Tensor

from fusmae.model import FusMAE, Masks
from fusmae.training.ds_config import plan_engine
from fusmae.training.engine import Engine, compile_model
from fusmae.training.ledger import Ledger
from fusmae.training.metrics import Stopwatch
from fusmae.training.ranks import ranks_from_environment


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


# Cases that make no `Bench` of their own.
APART: dict[str, Callable[[Setting], dict[str, Any]]] = {"product": best_product, "paper": paper}


def measure(setting: Setting) -> dict[str, Any]:
    """A case's figures, with the largest micro-batch that fits."""
    if setting.case in APART:
        return APART[setting.case](setting)
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
