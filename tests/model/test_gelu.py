"""The branch-free GELU is torch's exact one, to the rounding of float32."""

import torch

from fusmae.model.gelu import BranchFree, normal_cdf

VALUES = torch.cat([torch.linspace(-13, 13, 26_001), torch.tensor([0.0, -0.0, 1e-20, -1e-20])])


def exact_cdf(x: torch.Tensor) -> torch.Tensor:
    """In float64, by erfc, which does not cancel where the distribution is tiny."""
    return 0.5 * torch.erfc(-x.double() / 2**0.5)


def test_the_distribution_has_a_small_relative_error_down_to_its_smallest_values() -> None:
    """1.2e-7 by its source and some roundings; the exponent, about -x^2 / 2, has 24 bits."""
    exact = exact_cdf(VALUES)
    error = (normal_cdf(VALUES).double() - exact).abs() / exact
    assert (error <= 5e-7 * (1 + VALUES.double() ** 2 / 2)).all()


def test_compiled_values_and_gradients_are_those_of_the_exact_gelu() -> None:
    x = VALUES.clone().requires_grad_()
    compiled = torch.compile(BranchFree.apply, backend="eager", fullgraph=True)
    values = compiled(x)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    exact = VALUES.double().requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    assert torch.allclose(values.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.allclose(gradient.double(), slope, rtol=1e-6, atol=3e-7)
    assert values.isfinite().all() and gradient.isfinite().all()


def test_bfloat16_is_the_exact_value_rounded_also_where_torchs_cancels_to_zero() -> None:
    """bfloat16 rounds by at most 2^-9; 2^-8 leaves room for one value on the border."""
    x = VALUES.bfloat16()
    compiled = torch.compile(BranchFree.apply, backend="eager", fullgraph=True)
    exact = x.double() * exact_cdf(x)
    assert torch.allclose(compiled(x).double(), exact, rtol=2**-8, atol=0)
