"""Which parameters decay."""

from fusmae.config import OptimConfig
from fusmae.model import FusMAE
from fusmae.training.optim import parameter_groups, torch_adamw

from .engine_worker import CHANNELS, MODEL


def test_every_parameter_is_in_one_group_and_only_kernels_decay() -> None:
    model = FusMAE(MODEL, CHANNELS)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, others = (
        [names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.05)
    )
    assert sorted(decaying + others) == sorted(names.values())
    assert all(name.endswith("weight") and "norm" not in name for name in decaying)
    kept = ("bias", "token")
    assert all(name.endswith(kept) or "norm" in name for name in others)
    assert sum(name.endswith("token") for name in others) == 3  # global, and one mask a sensor


def test_adam_is_exactly_torchs_and_fused() -> None:
    """A subclass would make ZeRO refuse it; the numbers are the recipe's."""
    optim = OptimConfig(betas=(0.8, 0.9), eps=1e-7, weight_decay=0.1)
    adam = torch_adamw(FusMAE(MODEL, CHANNELS), optim)
    assert type(adam).__name__ == "AdamW" and type(adam).__module__.startswith("torch.optim")
    assert [group["weight_decay"] for group in adam.param_groups] == [0.1, 0.0]
    for group in adam.param_groups:
        assert (group["betas"], group["eps"], group["fused"]) == ((0.8, 0.9), 1e-7, True)
