"""The estimate of weak scaling against what two ranks send, and arithmetic on paper."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fusmae.config import PretrainRecipe, load_recipe
from fusmae.model import FusMAE
from fusmae.model.budget import count_parameters
from fusmae.training.ds_config import Precision
from fusmae.training.scaling import Links, Traffic, main, step_bounds, traffic

from .conftest import ROOT, start_ranks, wait_for
from .engine_worker import make_model

LINKS = Links(gpus_per_node=8, node_bytes_s=100e9, network_bytes_s=25e9)


WORKER = Path(__file__).with_name("engine_worker.py")
# DeepSpeed's autocast, and its stage 3, mark the process: they come last.
MEASURED: list[tuple[int, Precision]] = [
    *((stage, "fp32") for stage in (0, 1, 2)),
    *((stage, "bf16") for stage in (1, 2)),
    *((stage, "autocast") for stage in (0, 1, 2)),
]
LAST: list[tuple[int, Precision]] = [(3, "fp32"), (3, "bf16"), (3, "autocast")]
JSON: dict[Precision, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "autocast": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Bytes by collective of a second step of the tiny model on 2 ranks, by stage and precision."""
    out = tmp_path_factory.mktemp("sent")
    # By default what has fewer than 100,000 elements is not split at stage 3.
    zero = {"stage3_param_persistence_threshold": 0}
    cases = [
        {"name": f"{stage}-{precision}", "steps": 2}
        | {"ds": {"train_micro_batch_size_per_gpu": 4} | JSON[precision]}
        for stage, precision in MEASURED + LAST
    ]
    for entry, (stage, _) in zip(cases, MEASURED + LAST, strict=True):
        entry["ds"]["zero_optimization"] = {"stage": stage} | (zero if stage == 3 else {})
    (out / "plan.json").write_text(json.dumps(cases))
    wait_for(start_ranks(2, WORKER, "--plan", out / "plan.json", "--out", out))
    found = [str(entry["name"]) for entry in cases]
    return {name: json.loads((out / f"{name}.json").read_text())["sent"] for name in found}


def in_products(model: FusMAE) -> int:
    """Parameters of the layers whose products autocast makes in bfloat16."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return sum(p.numel() for layer in layers for p in layer.parameters(recurse=False))


@pytest.mark.parametrize(("stage", "precision"), MEASURED + LAST)
def test_what_two_ranks_send_is_the_table(
    sent: dict[str, dict[str, int]], stage: int, precision: Precision
) -> None:
    """1e-3 for padding, and for the norm and the loss of the step."""
    model, found = make_model(), sent[f"{stage}-{precision}"]
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = traffic(stage, precision, parameters, 2)
    # Of what goes in fp32 under autocast, the table counts 2 bytes: here it is 6 % of all.
    others = parameters - in_products(model) if precision == "autocast" and stage else 0
    # Of each pass, one of two ranks sends half.
    reduced = found.get("allreduce", 0) + found.get("reduce_scatter_base", 0) / 2
    passes = 1 if stage == 3 else 2
    assert reduced == pytest.approx(expected.gradients + others * passes, rel=1e-3)
    gathered = found.get("allgather_base", 0) / 2
    assert gathered == pytest.approx(expected.weights + (others if stage == 3 else 0), rel=1e-3)


def test_gradients_that_autocast_leaves_in_fp32_are_few_in_a_vit_b() -> None:
    recipe = load_recipe(PretrainRecipe, ROOT / "train" / "recipes" / "paper.toml", ())
    with torch.device("meta"):
        model = FusMAE(recipe.model, recipe.data.channels)
    parameters = count_parameters(recipe.model, recipe.data.channels)
    assert 0.97 * parameters < in_products(model) < parameters


@pytest.mark.parametrize(("stage", "precision"), MEASURED + LAST)
def test_one_gpu_sends_nothing_and_takes_its_own_time(stage: int, precision: Precision) -> None:
    sent = traffic(stage, precision, 10**8, 1)
    assert sent.gradients == sent.weights == 0
    assert step_bounds(0.05, sent, 1e9) == (0.05, 0.05)


def test_two_gpus_on_paper() -> None:
    """100 M parameters; half of their 200 or 400 MB a pass."""
    assert traffic(0, "autocast", 10**8, 2) == Traffic(400e6, 0.0, overlaps=False)
    assert traffic(1, "autocast", 10**8, 2) == Traffic(200e6, 200e6, overlaps=True)
    assert traffic(2, "bf16", 10**8, 2) == Traffic(200e6, 100e6, overlaps=True)
    # At 1 GB/s: gradients 0.2 s, of which 2/3 of 0.15 s hide; weights 0.2 s.
    low, high = step_bounds(0.15, traffic(1, "autocast", 10**8, 2), 1e9)
    assert (low, high) == pytest.approx((0.15 + 0.1 + 0.2, 0.15 + 0.2 + 0.2))
    # Stage 0 hides nothing.
    assert step_bounds(0.15, traffic(0, "fp32", 10**8, 2), 1e9) == pytest.approx((0.55, 0.55))
    with pytest.raises(ValueError, match="bf16 with ZeRO stage 0 is refused"):
        traffic(0, "bf16", 10**8, 2)


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    assert [LINKS.bytes_s(n) for n in (2, 8, 16)] == [100e9, 100e9, 25e9]


def test_the_command_prints_a_line_for_each_number_of_gpus() -> None:
    recipe = str(ROOT / "train" / "recipes" / "paper.toml")
    options = ["--recipe", recipe, "--step-s", "0.1", "--samples", "200"]
    ended = CliRunner().invoke(main, [*options, "--node-gb-s", "100", "--network-gb-s", "25"])
    assert ended.exit_code == 0, ended.output
    first, *_ = ended.output.splitlines()
    assert first.startswith("An estimate: 108.8 M parameters, autocast, ZeRO-1")
    rows = [line for line in ended.output.splitlines() if line.startswith("| ")][1:]
    assert rows[0] == "| 1 | 200 | 0 | 100.0 to 100.0 | 2,000 to 2,000 | 100 to 100 % |"
    # 8 GPUs: 7/8 * 435.3 MB of weights, and twice half of that of gradients, which may hide; at
    # 100 GB/s each takes 3.8 ms.
    assert rows[3] == "| 8 | 1,600 | 762 | 103.8 to 107.6 | 14,867 to 15,413 | 93 to 96 % |"
    assert len(rows) == 7
    ended = CliRunner().invoke(main, [*options, "--node-gb-s", "0", "--network-gb-s", "25"])
    assert ended.exit_code == 2
