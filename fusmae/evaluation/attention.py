"""Where an encoder's attention goes: each sensor's queries, block by block, against uniform.

python -m fusmae.evaluation.attention RUN

Fus-MAE says that without XAttnEncoder the map of joint self-attention over [x; y; g] is
block-diagonal: tokens look at their own sensor. Here that is a number for each block, the share of
attention that goes to other sensors, beside the share of tokens that are theirs. Nothing is masked.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import click
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from fusmae.evaluation.reconstruction import (
    BATCH,
    Pretrained,
    dataset_of,
    load_pretrained,
    read_images,
)
from fusmae.manifest import read_manifest
from fusmae.model import FusMAEEncoder
from fusmae.model.attention import Block, SelfAttention
from fusmae.training.durable import replace_file

# B batch, A heads, N tokens of all sensors and the global one, G groups: sensors, global token

RESULT_NAME = "attention.json"
GLOBAL = "global"
_FORMAT = "fusmae-attention"
_NUM_SAMPLES = 256


@dataclass(frozen=True)
class BlockAttention:
    """Joint self-attention of one block; blocks are numbered from 1, XAttnEncoder being block 1.

    `to[x][y]` is the share of the attention of x's queries that goes to y's keys, mean over heads,
    samples and queries; "global" is the global token. `others[x]` is the part of it that goes to
    other sensors than x, and `uniform[x]` what that would be if all keys had the same.
    """

    block: int
    to: dict[str, dict[str, float]]
    others: dict[str, float]
    uniform: dict[str, float]


def measure_attention(
    encoder: FusMAEEncoder, batches: Iterable[dict[str, Tensor]]
) -> list[BlockAttention]:
    """The blocks with joint self-attention, over all samples of `batches` (images by sensor).

    One batch's maps of one block are in memory at a time.

    Raises:
        ValueError: the encoder has no joint self-attention, or only one sensor.
    """
    check_joint(encoder)
    sums: dict[int, Tensor] = {}
    num_samples, counts = 0, {}
    for images in batches:
        counts = token_counts(encoder, images)

        def add(
            number: int, weights: Tensor, sizes: Sequence[int] = tuple(counts.values())
        ) -> None:
            added = group_shares(weights, sizes).double().sum(0)  # (G, G)
            sums[number] = sums[number] + added if number in sums else added

        with watched(encoder, add), torch.inference_mode():
            encoder(images)
        num_samples += len(next(iter(images.values())))
    return [_describe(number, total / num_samples, counts) for number, total in sums.items()]


def check_joint(encoder: FusMAEEncoder) -> None:
    """Raises ValueError if no block of the encoder has the tokens of several sensors."""
    fusion = encoder.config.fusion
    if fusion in ("late", "stack") or len(encoder.channels) < 2:
        raise ValueError(
            f"fusion {fusion!r} of {', '.join(encoder.channels)} has no joint self-attention of "
            "several sensors; none, xad, xae and xae_xad with two sensors or more have"
        )


def token_counts(encoder: FusMAEEncoder, images: dict[str, Tensor]) -> dict[str, int]:
    """Tokens of each sensor, in the order of joint self-attention, and of the global token."""
    counts = {}
    for sensor in encoder.channels:
        patch_px = encoder.config.patch_px_of(sensor)
        height, width = images[sensor].shape[2:]
        counts[sensor] = (height // patch_px) * (width // patch_px)
    return {**counts, GLOBAL: 1}


@contextmanager
def watched(encoder: FusMAEEncoder, look: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within, each joint self-attention of the encoder calls `look(block, weights)`.

    `weights` are (B, A, N, N); the block's number counts XAttnEncoder as 1.
    """

    def hook_of(number: int, attention: SelfAttention) -> Callable[[nn.Module, Any], None]:
        return lambda _, inputs: look(number, attention.weights(inputs[0]))

    hooks = []
    for number, block in enumerate(encoder.blocks, start=2 if encoder.config.has_xae else 1):
        attention = cast(Block, block).attn
        hooks.append(attention.register_forward_pre_hook(hook_of(number, attention)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def group_shares(weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """(B, A, N, N) attention between groups of `sizes` tokens: (B, G, G) shares, rows adding to 1.

    Entry (x, y) is the attention of a query of group x to all keys of group y, mean over heads and
    the queries of x.
    """
    mean = weights.mean(1)  # (B, N, N)
    by_key = [part.sum(-1) for part in torch.split(mean, list(sizes), dim=-1)]
    to_groups = torch.stack(by_key, dim=-1)  # (B, N, G)
    by_query = [part.mean(1) for part in torch.split(to_groups, list(sizes), dim=1)]
    return torch.stack(by_query, dim=1)


def _describe(number: int, shares: Tensor, counts: dict[str, int]) -> BlockAttention:
    names = list(counts)
    to = {
        x: dict(zip(names, row, strict=True)) for x, row in zip(names, shares.tolist(), strict=True)
    }
    sensors, total = names[:-1], sum(counts.values())
    others = {x: [y for y in sensors if y != x] for x in sensors}
    return BlockAttention(
        number,
        to,
        {x: sum(to[x][y] for y in others[x]) for x in sensors},
        {x: sum(counts[y] for y in others[x]) / total for x in sensors},
    )


def attention_of_run(
    pretrained: Pretrained, dataset: Path, split: str, num_samples: int
) -> list[BlockAttention]:
    """`measure_attention` of a run's encoder on the first samples of a split.

    Raises:
        ValueError: as `measure_attention`, or the dataset has no such split.
    """
    encoder = pretrained.model.encoder
    check_joint(encoder)
    available = min(num_samples, read_manifest(dataset).split(split).num_samples)
    images = (images for _, images in read_images(pretrained, dataset, split, available))
    total, console = -(-available // BATCH), Console(stderr=True)
    return measure_attention(encoder, track(images, "Attention", total=total, console=console))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Dataset folder; the run's own if not given."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help=f"The file; RUN/{RESULT_NAME} if not given."
)
@click.option("--split", default="val", show_default=True, help="Whose samples are looked at.")
@click.option(
    "--samples",
    default=_NUM_SAMPLES,
    show_default=True,
    type=click.IntRange(min=1),
    help="The first ones of the split.",
)
def main(run: Path, data: Path | None, out: Path | None, split: str, samples: int) -> None:
    """Write the shares of attention between sensors, block by block, of RUN's newest checkpoint."""
    path = out or run / RESULT_NAME
    try:
        data = data or dataset_of(run)
        pretrained = load_pretrained(run, data)
        blocks = attention_of_run(pretrained, data, split, samples)
        table = {
            "format": _FORMAT,
            "fusion": pretrained.recipe.model.fusion,
            "step": pretrained.step,
            "dataset": read_manifest(data).name,
            "simulated": read_manifest(data).simulated,
            "split": split,
            "num_samples": min(samples, read_manifest(data).split(split).num_samples),
            "masked": "nothing",
            "blocks": [asdict(block) for block in blocks],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(table, indent=1) + "\n").encode())
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    for block in blocks:
        shares = ", ".join(
            f"{sensor} {100 * share:.1f} % ({100 * block.uniform[sensor]:.1f})"
            for sensor, share in block.others.items()
        )
        click.echo(f"block {block.block}: to other sensors (if uniform): {shares}")
    click.echo(str(path))


if __name__ == "__main__":
    main()
