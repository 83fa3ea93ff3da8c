"""An estimate of weak scaling from one measured step: each GPU keeps its samples, GPUs are added.

`python -m fusmae.training.scaling --help`. It knows bytes and bandwidths, nothing of latency,
stragglers or a network that others use; the file system has to keep up as well.
"""

from dataclasses import dataclass
from pathlib import Path

import click

from fusmae.config import PretrainRecipe, load_recipe
from fusmae.model.budget import count_parameters
from fusmae.training.ds_config import Precision

NUM_GPUS = (1, 2, 4, 8, 16, 32, 64)
# What DeepSpeed 0.19.8 sends of each parameter: bytes in a pass x passes, of gradients and of
# weights. An all-reduce is two passes. Stages 1 and 2 all-reduce whole gradients, too
# (use_multi_rank_bucket_allreduce), and gather the weights after the update. Stage 3 scatters
# gradients and gathers weights before the forward pass; a model of less than 5e8 parameters keeps
# them for the backward pass. Under autocast gradients of norms and of the patch embedding go
# in fp32 from stage 1 on: less than 3 % of a ViT-B's, counted as if in bfloat16.
# tests/training/test_scaling.py holds the table to what is sent.
_BYTES: dict[tuple[int, Precision], tuple[int, int]] = {
    (0, "fp32"): (4 * 2, 0),
    (0, "autocast"): (4 * 2, 0),
    **{(stage, "fp32"): (4 * 2, 4) for stage in (1, 2)},
    **{(stage, "autocast"): (2 * 2, 4) for stage in (1, 2)},
    **{(stage, "bf16"): (2 * 2, 2) for stage in (1, 2)},
    (3, "fp32"): (4, 4),
    (3, "autocast"): (2, 2),
    (3, "bf16"): (2, 2),
}
# Of a step's time without communication: forward 1 part, backward 2 parts (Flops.training).
_BACKWARD = 2 / 3


@dataclass(frozen=True)
class Links:
    """Bytes a second that a GPU sends, within its node and to others (its share of the cards)."""

    gpus_per_node: int
    node_bytes_s: float
    network_bytes_s: float

    def bytes_s(self, num_gpus: int) -> float:
        """The slowest link of a ring through that many GPUs."""
        one_node = num_gpus <= self.gpus_per_node
        return self.node_bytes_s if one_node else self.network_bytes_s


@dataclass(frozen=True)
class Traffic:
    """Bytes of a step that a GPU sends; `overlaps` is whether gradients may go, by `overlap_comm`,
    while the backward pass runs. At stage 0 DeepSpeed sends them after it."""

    gradients: float
    weights: float
    overlaps: bool


def traffic(stage: int, precision: Precision, parameters: int, num_gpus: int) -> Traffic:
    """What DeepSpeed sends by rings, each pass of which sends (n - 1) / n of everything.

    Raises:
        ValueError: bf16 with stage 0, which the trainer refuses.
    """
    if (stage, precision) not in _BYTES:
        raise ValueError(f"{precision} with ZeRO stage {stage} is refused: use stage 1")
    gradients, weights = _BYTES[stage, precision]
    one_pass = (num_gpus - 1) / num_gpus * parameters
    return Traffic(gradients * one_pass, weights * one_pass, overlaps=stage > 0)


def step_bounds(step_s: float, sent: Traffic, bytes_s: float) -> tuple[float, float]:
    """Seconds a step: if gradients hide behind the backward pass, and if nothing is hidden."""
    gradients_s, weights_s = sent.gradients / bytes_s, sent.weights / bytes_s
    shown_s = max(0.0, gradients_s - _BACKWARD * step_s) if sent.overlaps else gradients_s
    return step_s + shown_s + weights_s, step_s + gradients_s + weights_s


def table(
    step_s: float, samples: int, stage: int, precision: Precision, parameters: int, links: Links
) -> str:
    """A Markdown table over `NUM_GPUS`; `samples` are one GPU's in a step of `step_s`."""
    lines = [
        "| GPUs | global batch | MB sent by each | ms a step | samples/s | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    for num_gpus in NUM_GPUS:
        sent = traffic(stage, precision, parameters, num_gpus)
        bounds = step_bounds(step_s, sent, links.bytes_s(num_gpus))
        batch = samples * num_gpus
        ms = " to ".join(f"{1000 * bound:.1f}" for bound in bounds)
        speed = " to ".join(f"{batch / bound:,.0f}" for bound in reversed(bounds))
        efficiency = " to ".join(f"{100 * step_s / bound:.0f}" for bound in reversed(bounds))
        megabytes = (sent.gradients + sent.weights) / 1e6
        lines.append(
            f"| {num_gpus} | {batch:,} | {megabytes:,.0f} | {ms} | {speed} | {efficiency} % |"
        )
    return "\n".join(lines)


_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--step-s", type=_POSITIVE, required=True, help="Measured on one GPU, in seconds.")
@click.option("--samples", type=click.IntRange(1), required=True, help="In that step.")
@click.option("--recipe", type=click.Path(path_type=Path), required=True, help="For the model.")
@click.option("--stage", type=click.IntRange(0, 3), default=1, show_default=True, help="ZeRO's.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "autocast", "bf16"]),
    default="autocast",
    show_default=True,
    help="As in the DeepSpeed json.",
)
@click.option("--gpus-per-node", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--node-gb-s", type=_POSITIVE, required=True, help="10^9 bytes/s that a GPU sends in its node."
)
@click.option(
    "--network-gb-s",
    type=_POSITIVE,
    required=True,
    help="10^9 bytes/s of the node's network for each of its GPUs.",
)
def main(
    step_s: float,
    samples: int,
    recipe: Path,
    stage: int,
    precision: Precision,
    gpus_per_node: int,
    node_gb_s: float,
    network_gb_s: float,
) -> None:
    """Estimate weak scaling from 1 to 64 GPUs: not a measurement.

    Ranges go from "no traffic is hidden" to "gradients hide behind the backward pass", which they
    can from stage 1 on.
    """
    try:
        loaded = load_recipe(PretrainRecipe, recipe, ())
        parameters = count_parameters(loaded.model, loaded.data.channels)
        links = Links(gpus_per_node, node_gb_s * 1e9, network_gb_s * 1e9)
        lines = table(step_s, samples, stage, precision, parameters, links)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"An estimate: {parameters / 1e6:.1f} M parameters, {precision}, ZeRO-{stage}, "
        f"{node_gb_s:g} GB/s within nodes of {gpus_per_node}, {network_gb_s:g} GB/s a GPU between "
        f"them; {samples} samples in {step_s:g} s on one GPU.\n"
    )
    click.echo(lines)


if __name__ == "__main__":
    main()
