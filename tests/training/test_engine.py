"""Every ZeRO stage and precision on 1, 2 and 4 ranks against one process of plain PyTorch."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fusmae.model import draw_masks

from .conftest import start_ranks, wait_for
from .engine_worker import CHANNELS, GLOBAL_BATCH, MODEL, RATES, images_at, make_model

# All cases run in the first test's name: 115 s of processor time.
pytestmark = pytest.mark.timeout(900)

WORKER = Path(__file__).parent / "engine_worker.py"
STEPS = len(RATES)
HALF = STEPS // 2
CLIP_NORM = 1.0

# fp32 differs by the order of sums alone: 1e-7 relative in each loss (measured), which six
# steps of Adam at these rates carry on without growth.
FP32 = 1e-6
# bfloat16 has 8 bits of mantissa: 2^-8 = 4e-3 a product; measured 1.9e-3 (autocast against
# autocast, whose gradients are summed in bf16) and 4.5e-3 (bf16 weights against fp32).
AUTOCAST, BF16 = 5e-3, 1e-2

# The step that is to be skipped.
SPOILT = 1

# Sensor dropout: the sensors of each step.
SHOWN = [["s1", "s2"], ["s2"], ["s1"], ["s2"]]

MICRO = {"train_micro_batch_size_per_gpu": 4}
BF16_JSON = {"bf16": {"enabled": True}}
AUTOCAST_JSON = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {**MICRO, "zero_optimization": {"stage": stage, **more}}


OFFLOAD = zero(2, offload_optimizer={"device": "cpu"})


def case(name: str, ds: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "ds": ds, "steps": STEPS} | more


def half_way(name: str) -> str:
    return f"{name}/checkpoints/step-{HALF:08d}"


def exact_cases(stage: int) -> list[dict[str, Any]]:
    """A whole run, its first half saved, and its second half resumed, plus one that accumulates
    two micro-batches and clips."""
    small = {**zero(stage), "train_micro_batch_size_per_gpu": 2}
    dropout = {"shown": SHOWN, "clip_norm": CLIP_NORM}
    return [
        case(f"{stage}-whole", zero(stage)),
        case(f"{stage}-half", zero(stage), steps=HALF, save=f"{stage}-half"),
        case(f"{stage}-resumed", zero(stage), restore=half_way(f"{stage}-half")),
        case(f"{stage}-accumulated-clipped", small, clip_norm=CLIP_NORM),
        case(f"{stage}-validated", zero(stage), validate=True),
        case(f"{stage}-spoilt", small, clip_norm=CLIP_NORM, spoil=SPOILT),
        case(f"{stage}-dropout", small, **dropout),
        case(f"{stage}-dropout-half", small, **dropout, steps=HALF, save=f"{stage}-dropout-half"),
        case(
            f"{stage}-dropout-resumed", small, **dropout, restore=half_way(f"{stage}-dropout-half")
        ),
    ]


# DeepSpeed replaces torch.nn.functional.linear for good at stage 3, and its autocast marks the
# process, too: what is compared bit for bit comes before them.
CASES_ON_TWO = [
    *exact_cases(0),
    *exact_cases(1),
    *exact_cases(2),
    case("2-offload", OFFLOAD),
    case("2-offload-spoilt", OFFLOAD, clip_norm=CLIP_NORM, spoil=SPOILT),
    # What torch.compile captures, run by torch's own kernels; the compiler itself is below.
    *(case(f"{stage}-captured", zero(stage), backend="aot_eager") for stage in (0, 1, 2)),
    *exact_cases(3),
    case("0-from-3", zero(0), restore=half_way("3-half")),
    case("1-from-2", zero(1), restore=half_way("2-half")),
    case("2-from-0", zero(2), restore=half_way("0-half")),
    case("3-from-one-rank", zero(3), restore=half_way("one-rank-half")),
    *(case(f"{stage}-bf16", zero(stage) | BF16_JSON) for stage in (1, 2, 3)),
    *(case(f"{stage}-autocast", zero(stage) | AUTOCAST_JSON) for stage in (0, 1, 2)),
    *(
        case(f"{stage}-{name}-spoilt", zero(stage) | table, clip_norm=CLIP_NORM, spoil=SPOILT)
        for name, table in (("bf16", BF16_JSON), ("autocast", AUTOCAST_JSON))
        for stage in (1, 2, 3)
    ),
    case("0-autocast-spoilt", zero(0) | AUTOCAST_JSON, clip_norm=CLIP_NORM, spoil=SPOILT),
]
ALONE = {"train_micro_batch_size_per_gpu": GLOBAL_BATCH}
CASES_FIRST = [case("one-rank-half", ALONE, steps=HALF, save="one-rank-half")]
CASES_LAST = [
    case(f"one-rank-from-{stage}", ALONE, restore=half_way(f"{stage}-half")) for stage in range(4)
] + [
    case(f"{stage}-one-rank", zero(stage) | ALONE, clip_norm=CLIP_NORM, spoil=SPOILT)
    for stage in range(4)
]
CASES_LAST.append(case("0-one-rank-dropout", ALONE, clip_norm=CLIP_NORM, shown=SHOWN))
# One sample a micro-batch: every rank accumulates two.
SINGLE = {"train_micro_batch_size_per_gpu": 1}
CASES_ON_FOUR = [
    case(f"{stage}-four-ranks", zero(stage) | SINGLE, clip_norm=CLIP_NORM, spoil=SPOILT)
    for stage in range(4)
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> "Results":
    """Losses and gradient norms of every case: one rank, then two, four, and one again."""
    out = tmp_path_factory.mktemp("engine")
    runs = ((1, CASES_FIRST), (2, CASES_ON_TWO), (4, CASES_ON_FOUR), (1, CASES_LAST))
    for ranks, cases in runs:
        plan = out / "plan.json"
        plan.write_text(json.dumps(cases))
        wait_for(start_ranks(ranks, WORKER, "--plan", plan, "--out", out), at_most_s=800)
    names = [entry["name"] for _, cases in runs for entry in cases]
    return {name: json.loads((out / f"{name}.json").read_text()) for name in names}


def plain_pytorch(
    clip_norm: float = float("inf"),
    autocast: bool = False,
    lost_update: int | None = None,
    shown: list[list[str]] | None = None,
) -> dict[str, Any]:
    """The same steps with the global batch in one piece, written without our trainer."""
    model = make_model()
    matrices = [p for p in model.parameters() if p.ndim == 2 or p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim == 1 or p.ndim == 3]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step, rate in enumerate(RATES):
        positions = torch.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH
        masks = draw_masks(MODEL, list(CHANNELS), 0, positions)
        images = images_at(step)
        if shown is not None:
            images = {sensor: images[sensor] for sensor in shown[step]}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(images, masks)["loss"]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # of a sensor left out, it stays so
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)))
        for group in adam.param_groups:
            group["lr"] = rate
        if step != lost_update:
            adam.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "norms": norms}


@pytest.fixture(scope="module")
def oracle() -> dict[str, Any]:
    return plain_pytorch()


Results = dict[str, dict[str, Any]]


FP32_CASES = ["2-offload", *(f"{stage}-whole" for stage in range(4))]


@pytest.mark.parametrize("name", FP32_CASES + [f"{stage}-captured" for stage in (0, 1, 2)])
def test_fp32_stages_train_as_plain_pytorch(results: Results, oracle: Any, name: str) -> None:
    assert results[name]["losses"] == pytest.approx(oracle["losses"], rel=FP32)
    assert results[name]["norms"] == pytest.approx(oracle["norms"], rel=FP32)
    assert bool(results[name]["graphs"]) == ("captured" in name)


@pytest.mark.parametrize("step", range(STEPS - 1))
def test_the_tolerances_would_notice_one_lost_update(oracle: Any, step: int) -> None:
    lacking = plain_pytorch(lost_update=step)
    assert lacking["losses"] != pytest.approx(oracle["losses"], rel=BF16)


@pytest.mark.parametrize("stage", range(4))
def test_accumulation_and_clipping_equal_the_big_batch(results: Results, stage: int) -> None:
    clipped = plain_pytorch(CLIP_NORM)
    assert min(clipped["norms"]) > CLIP_NORM  # so that clipping is at work in every step
    assert results[f"{stage}-accumulated-clipped"]["losses"] == pytest.approx(
        clipped["losses"], rel=FP32
    )
    assert results[f"{stage}-accumulated-clipped"]["norms"] == pytest.approx(
        clipped["norms"], rel=FP32
    )


@pytest.mark.parametrize("ranks", ["one-rank", "four-ranks"])
@pytest.mark.parametrize("stage", range(4))
def test_every_stage_trains_the_same_on_one_rank_and_on_four(
    results: Results, stage: int, ranks: str
) -> None:
    """As on two, above; one step of them is skipped."""
    assert_step_skipped(results[f"{stage}-{ranks}"], rel=FP32)


@pytest.mark.parametrize("name", [*(f"{stage}-spoilt" for stage in range(4)), "2-offload-spoilt"])
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing(results: Results, name: str) -> None:
    assert_step_skipped(results[name], rel=FP32)


@pytest.mark.parametrize(
    ("name", "rel"),
    [
        *((f"{stage}-autocast-spoilt", AUTOCAST) for stage in range(4)),
        *((f"{stage}-bf16-spoilt", BF16) for stage in (1, 2, 3)),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing_in_bfloat16(
    results: Results, name: str, rel: float
) -> None:
    assert_step_skipped(results[name], rel)


def assert_step_skipped(result: dict[str, Any], rel: float) -> None:
    """Weights, moments and Adam's count stayed as they were to the bit, and training went on as
    if there had been no such step."""
    assert result["kept"] is True
    assert result["skipped"] == [float(step == SPOILT) for step in range(STEPS)]
    assert not math.isfinite(result["norms"][SPOILT])
    expected = plain_pytorch(CLIP_NORM, lost_update=SPOILT)
    for key in ("losses", "norms") if rel == FP32 else ("losses",):
        got, wanted = ([v for i, v in enumerate(x[key]) if i != SPOILT] for x in (result, expected))
        assert got == pytest.approx(wanted, rel=rel)


# Clipping included; all configurations are counted by tests/benchmarks/step_operations.py.
@pytest.mark.parametrize("name", ["0-autocast", "1-autocast", "2-autocast", "1-bf16", "2-bf16"])
def test_a_step_is_at_most_30_operations_and_waits_for_nothing(results: Results, name: str) -> None:
    for total, waits in results[f"{name}-spoilt"]["operations"][1:]:  # the first makes buffers
        assert total <= 30
        assert waits == 0


@pytest.mark.parametrize("name", ["0-autocast", "1-autocast", "2-autocast", "1-bf16", "2-bf16"])
def test_nothing_in_a_whole_step_waits_for_the_device(results: Results, name: str) -> None:
    """Masks, forward and backward pass, and update, by what is dispatched; test_gpu has a GPU."""
    (first, waits), *others = results[f"{name}-spoilt"]["whole"][1:]
    assert waits == 0
    assert others == [[first, 0]] * len(others)  # a step that is skipped is no other
    assert results["3-bf16-spoilt"]["whole"][1][1] > 0  # so a wait would be seen


@pytest.mark.parametrize("name", [*range(4), "0-one-rank"])
def test_a_sensor_left_out_of_a_step_has_gradients_of_zero(results: Results, name: str) -> None:
    """Its moments decay and its weights move on by them, at any stage as in plain PyTorch."""
    expected = plain_pytorch(CLIP_NORM, shown=SHOWN)
    assert results[f"{name}-dropout"]["losses"] == pytest.approx(expected["losses"], rel=FP32)
    assert results[f"{name}-dropout"]["norms"] == pytest.approx(expected["norms"], rel=FP32)


@pytest.mark.parametrize("stage", range(4))
def test_validating_gives_the_same_losses_and_changes_nothing(results: Results, stage: int) -> None:
    validated = results[f"{stage}-validated"]
    assert len(validated["validated"]) == STEPS
    assert validated["validated"] == validated["trained"]
    assert validated["losses"] == results[f"{stage}-whole"]["losses"]
    assert validated["norms"] == results[f"{stage}-whole"]["norms"]


@pytest.mark.parametrize("stage", range(4))
def test_resuming_with_sensor_dropout_is_exact(results: Results, stage: int) -> None:
    for key in ("losses", "norms"):
        halves = results[f"{stage}-dropout-half"][key] + results[f"{stage}-dropout-resumed"][key]
        assert halves == results[f"{stage}-dropout"][key]


@pytest.mark.parametrize("stage", (0, 1, 2))
def test_autocast_trains_as_pytorch_under_autocast(results: Results, stage: int) -> None:
    expected = plain_pytorch(autocast=True)
    assert results[f"{stage}-autocast"]["losses"] == pytest.approx(expected["losses"], rel=AUTOCAST)


@pytest.mark.parametrize("stage", (1, 2, 3))
def test_bf16_trains_close_to_fp32(results: Results, oracle: Any, stage: int) -> None:
    assert results[f"{stage}-bf16"]["losses"] == pytest.approx(oracle["losses"], rel=BF16)
    assert results[f"{stage}-bf16"]["losses"] != pytest.approx(oracle["losses"], rel=FP32)


@pytest.mark.parametrize("stage", range(4))
def test_resuming_in_place_is_exact(results: Results, stage: int) -> None:
    """Tolerance 0: same stage, same world size, fp32 on a CPU."""
    for key in ("losses", "norms"):
        halves = results[f"{stage}-half"][key] + results[f"{stage}-resumed"][key]
        assert halves == results[f"{stage}-whole"][key]


@pytest.mark.parametrize(
    "name",
    [
        *("0-from-3", "1-from-2", "2-from-0", "3-from-one-rank"),
        *(f"one-rank-from-{stage}" for stage in range(4)),
    ],
)
def test_any_stage_and_world_size_restores_any_other(
    results: Results, oracle: Any, name: str
) -> None:
    assert results[name]["losses"] == pytest.approx(oracle["losses"][HALF:], rel=FP32)
    assert results[name]["norms"] == pytest.approx(oracle["norms"][HALF:], rel=FP32)
