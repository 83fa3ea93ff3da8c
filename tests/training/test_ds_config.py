"""What the DeepSpeed json may hold, and what is added to it."""

import json
from pathlib import Path
from typing import Any

import pytest

from fusmae.config import OptimConfig
from fusmae.training.ds_config import plan_engine, read_ds_config
from fusmae.training.engine import check_compile

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))
MICRO = {"train_micro_batch_size_per_gpu": 50}
OPTIM = OptimConfig(global_batch=400)


def zero(stage: int) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage}}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_accepted_and_explained(path: Path) -> None:
    table = read_ds_config(path)
    micro_batch = table["train_micro_batch_size_per_gpu"]
    plan = plan_engine(table, OptimConfig(global_batch=2 * micro_batch), world_size=2)
    assert plan.accumulation == 1
    readme = (path.parent / "README.md").read_text()
    assert f"`{path.name}`" in readme
    for key in keys_of(table):
        assert f"`{key}`" in readme, f"{key} of {path.name} has no reason in the README"


def keys_of(table: dict[str, Any]) -> set[str]:
    inner = [keys_of(value) for value in table.values() if isinstance(value, dict)]
    return set(table).union(*inner)


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_accumulation_follows_from_the_global_batch(ranks: int, accumulation: int) -> None:
    plan = plan_engine(MICRO, OPTIM, ranks)
    assert plan.accumulation == plan.config["gradient_accumulation_steps"] == accumulation
    assert plan.config["train_batch_size"] == 400


def test_the_users_table_is_left_alone() -> None:
    table = {**MICRO, **zero(1), "optimizer": {"type": "AdamW"}}
    before = json.dumps(table)
    plan_engine(table, OPTIM, 2)
    assert json.dumps(table) == before


OWN_ADAM = {"optimizer": {"type": "AdamW"}}
AUTOCAST = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("extra", "on_device"),
    [
        ({}, True),
        (zero(1), True),
        (zero(2), True),
        (zero(2) | {"bf16": {"enabled": True}}, True),
        (zero(3) | {"bf16": {"enabled": True}}, False),
        (OFFLOAD, False),
        (zero(1) | OWN_ADAM, False),
    ],
)
def test_one_guard_clips_and_skips_never_two_and_never_none(
    extra: dict[str, Any], on_device: bool
) -> None:
    plan = plan_engine(MICRO | extra, OptimConfig(global_batch=400, clip_norm=2.0), 1)
    assert plan.device_guard == on_device
    assert plan.config["gradient_clipping"] == (0.0 if on_device else 2.0)
    norm = plan.config["zero_optimization"]["compute_grad_norm"]
    assert norm == (plan.stage not in (1, 2) or not on_device)
    if "bf16" in extra:
        assert plan.config["bf16"]["check_grad_overflow"] != on_device


def test_without_a_clip_norm_deepspeed_does_not_clip_by_its_own_default() -> None:
    for extra in ({}, zero(1), zero(3), OFFLOAD):
        assert plan_engine(MICRO | extra, OPTIM, 1).config["gradient_clipping"] == 0.0


def test_the_json_chooses_which_fused_adam() -> None:
    table = MICRO | zero(1)
    assert not plan_engine(table, OPTIM, 1).deepspeed_adam
    assert plan_engine(table | OWN_ADAM, OPTIM, 1).deepspeed_adam
    torchs = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}}
    assert not plan_engine(table | torchs, OPTIM, 1).deepspeed_adam


@pytest.mark.parametrize(
    ("extra", "ranks", "said"),
    [
        ({"train_batch_size": 400}, 1, "remove train_batch_size .* optim.global_batch"),
        ({"gradient_accumulation_steps": 2}, 1, "remove gradient_accumulation_steps"),
        ({"gradient_clipping": 1.0}, 1, "remove gradient_clipping .* optim.clip_norm"),
        ({"scheduler": {"type": "WarmupLR"}}, 1, r"remove scheduler .* \[optim\]"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}},
            1,
            "remove optimizer.params.lr",
        ),
        ({"optimizer": {"type": "Lamb"}}, 1, "'Lamb' .* must be 'AdamW'"),
        (OWN_ADAM, 1, "DeepSpeed's AdamW with ZeRO stage 0 is refused"),
        ({"zero_optimisation": {"stage": 1}}, 1, "did you mean zero_optimization"),
        ({"gradient_allreduce_op": "sum"}, 1, "unknown key gradient_allreduce_op"),
        (zero(4), 1, "stage = 4 must be 0, 1, 2 or 3"),
        ({"fp16": {"enabled": True}}, 1, "fp16 is not supported"),
        ({"bf16": {"enabled": True}}, 1, "bf16 with ZeRO stage 0 is refused"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, 1, "'float16' must be"),
        (AUTOCAST | {"bf16": {"enabled": True}}, 1, "both enabled"),
        (zero(1) | AUTOCAST | {"communication_data_type": "fp32"}, 1, "DeepSpeed ignores it"),
        ({"train_micro_batch_size_per_gpu": "auto"}, 1, "'auto' .* whole number"),
        ({"train_micro_batch_size_per_gpu": 0}, 1, "whole number"),
        ({}, 3, "400 does not divide among 3 ranks"),
        ({}, 5, "a divisor of 80, such as 40"),
    ],
)
def test_what_is_refused_says_what_to_do(extra: dict[str, Any], ranks: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan_engine(MICRO | extra, OPTIM, ranks)


def test_the_sum_of_gradients_has_the_dtype_of_the_json_where_deepspeed_heeds_it() -> None:
    for extra in (AUTOCAST, zero(1) | {"bf16": {"enabled": True}}, zero(2)):
        plan = plan_engine(MICRO | extra | {"communication_data_type": "fp32"}, OPTIM, 1)
        assert plan.config["communication_data_type"] == "fp32"


def test_a_missing_micro_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="train_micro_batch_size_per_gpu = None"):
        plan_engine({}, OPTIM, 1)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is not valid JSON"), ("[]", "expected an object")]
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"broken.json.*{said}"):
        read_ds_config(path)
    with pytest.raises(ValueError, match=r"cannot read the DeepSpeed config .*absent\.json"):
        read_ds_config(tmp_path / "absent.json")


def test_compiling_is_refused_under_stage_3_and_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = {"train_micro_batch_size_per_gpu": 4}
    plans = [
        plan_engine(table | {"zero_optimization": {"stage": stage}}, OptimConfig(global_batch=4), 1)
        for stage in (3, 1)
    ]
    with pytest.raises(ValueError, match=r"run\.compile with ZeRO stage 3 is refused"):
        check_compile(plans[0])
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"run\.compile needs a C\+\+ compiler"):
        check_compile(plans[1])
