"""Where the GPU's time of a step goes, by kind of kernel, as torch's profiler saw it."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# The first kind whose pattern is in a kernel's name has it.
KINDS = {
    "resampling": r"upsample",
    "attention": r"flash|fmha|attention|cudnn_generated|dot_do_o|convert_dq",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|splitK",
    "Adam, norms of gradients": r"adam|multi_tensor|lpnorm",
    "fused by the compiler": r"^triton",
    "layer norm": r"layer_?norm|gammabeta",
    "gathers and scatters": r"index|gather|scatter|embedding",
    "sorting": r"sort|radix",
    "copies": r"memcpy|copy",
    "reductions": r"reduce",
    "other elementwise": r"elementwise|memset|fill|cat",
}


def kind_of(kernel: str) -> str:
    for kind, pattern in KINDS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "other"


def account(step: Callable[[], None], steps: int = 4, longest: int = 12) -> dict[str, Any]:
    """Milliseconds a step by kind of kernel, the longest kernels, and what is left of the time.

    `idle_ms` is the span from the first kernel to the end of the last, less the time in which any
    ran. The profiler slows the host, so it is an upper bound.
    """
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return summarise(spans, steps, longest)


def summarise(spans: list[tuple[float, float, str]], steps: int, longest: int) -> dict[str, Any]:
    """The account of kernels as (start, end, name), in microseconds."""
    by_kind: dict[str, float] = {}
    by_name: dict[str, list[float]] = {}
    busy, until = 0.0, 0.0
    for start, end, name in sorted(spans):
        by_kind[kind_of(name)] = by_kind.get(kind_of(name), 0.0) + end - start
        by_name.setdefault(name, []).append(end - start)
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    span = until - min((start for start, _, _ in spans), default=0.0)
    ranked = sorted(by_name.items(), key=lambda item: -sum(item[1]))

    def ms(microseconds: float) -> float:
        return round(microseconds / 1000 / steps, 3)

    return {
        "by_kind_ms": {k: ms(t) for k, t in sorted(by_kind.items(), key=lambda item: -item[1])},
        "idle_ms": ms(span - busy),
        "kernels": round(len(spans) / steps),
        "longest": [
            {"kernel": name[:100], "ms": ms(sum(times)), "times": round(len(times) / steps, 1)}
            for name, times in ranked[:longest]
        ],
    }
