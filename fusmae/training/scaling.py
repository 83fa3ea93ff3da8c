"""An estimate of weak scaling from one measured step: each GPU keeps its samples, GPUs are added.

`python -m fusmae.training.scaling --help`. It knows bytes and bandwidths, nothing of latency,
stragglers or a network that others use; the file system has to keep up as well.
"""

from dataclasses import dataclass
from pathlib import Path

import click

from fusmae.config import PretrainRecipe, load_recipe
from fusmae.model.budget import count_parameters

NUM_GPUS = (1, 2, 4, 8, 16, 32, 64)
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
    """Bytes of a step that a GPU sends: while the backward pass runs, and while all wait."""

    gradients: float
    weights: float


def traffic(stage: int, parameters: int, bytes_each: int, num_gpus: int) -> Traffic:
    """What ZeRO sends by ring algorithms, each pass of which sends (n - 1) / n of everything.

    Stage 0 reduces gradients in two passes. Stages 1 and 2 scatter them in one and gather the
    weights after the update in another; stage 3 gathers the weights twice, before the forward and
    the backward pass, which is counted as waiting.
    """
    one_pass = (num_gpus - 1) / num_gpus * parameters * bytes_each
    if stage == 0:
        return Traffic(2 * one_pass, 0.0)
    return Traffic(one_pass, (2 if stage == 3 else 1) * one_pass)


def step_bounds(step_s: float, sent: Traffic, bytes_s: float) -> tuple[float, float]:
    """Seconds a step: if gradients hide behind the backward pass, and if nothing is hidden."""
    gradients_s, weights_s = sent.gradients / bytes_s, sent.weights / bytes_s
    shown_s = max(0.0, gradients_s - _BACKWARD * step_s)
    return step_s + shown_s + weights_s, step_s + gradients_s + weights_s


def table(
    step_s: float, samples: int, stage: int, parameters: int, bytes_each: int, links: Links
) -> str:
    """A Markdown table over `NUM_GPUS`; `samples` are one GPU's in a step of `step_s`."""
    lines = [
        "| GPUs | global batch | MB sent by each | ms a step | samples/s | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    for num_gpus in NUM_GPUS:
        sent = traffic(stage, parameters, bytes_each, num_gpus)
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
    "--bytes-each",
    type=click.Choice(["4", "2"]),
    default="4",
    show_default=True,
    help="Of a gradient or weight that is sent: 4 under torch_autocast, 2 under bf16.",
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
    bytes_each: str,
    gpus_per_node: int,
    node_gb_s: float,
    network_gb_s: float,
) -> None:
    """Estimate weak scaling from 1 to 64 GPUs: not a measurement.

    Ranges go from "no traffic is hidden" to "gradients hide behind the backward pass".
    """
    try:
        loaded = load_recipe(PretrainRecipe, recipe, ())
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    parameters = count_parameters(loaded.model, loaded.data.channels)
    links = Links(gpus_per_node, node_gb_s * 1e9, network_gb_s * 1e9)
    click.echo(
        f"An estimate: {parameters / 1e6:.1f} M parameters of {bytes_each} bytes, ZeRO-{stage}, "
        f"{node_gb_s:g} GB/s within nodes of {gpus_per_node}, {network_gb_s:g} GB/s a GPU between "
        f"them; {samples} samples in {step_s:g} s on one GPU.\n"
    )
    click.echo(table(step_s, samples, stage, parameters, int(bytes_each), links))


if __name__ == "__main__":
    main()
