"""The whole model compiled as on a GPU that has the attention kernel; the kernel itself is faked.

A process of its own: what is registered here stays.
"""

import torch

from fusmae.config import ModelConfig
from fusmae.model import FusMAE, draw_masks, short_attention


def main() -> None:
    asked = []

    def fake_kernel(qkv: torch.Tensor) -> torch.Tensor:
        asked.append(qkv)
        return qkv[:, :, 0].clone()

    short_attention._forward.register_kernel("cpu")(fake_kernel)
    short_attention._backward.register_kernel("cpu")(lambda qkv, gradient: torch.zeros_like(qkv))
    short_attention._TRITON = True
    short_attention._has_kernel = lambda qkv: short_attention._has_compiler(0)
    torch.cuda.get_device_capability = lambda device=None: (9, 0)

    config = ModelConfig(preset="tiny", image_px=48, patch_px=8)
    channels = {"s1": 2, "s2": 12}
    model = FusMAE(config, channels)
    images = {sensor: torch.randn(4, count, 48, 48) for sensor, count in channels.items()}
    masks = draw_masks(config, list(channels), 0, torch.arange(4))
    forward = torch.compile(model.forward, dynamic=False, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        forward(images, masks)["loss"].backward()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print("graphs", graphs, "kernels", len(asked))


if __name__ == "__main__":
    main()
