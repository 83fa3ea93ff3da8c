"""The estimate of weak scaling against arithmetic on paper."""

import pytest
from click.testing import CliRunner

from fusmae.training.scaling import Links, Traffic, main, step_bounds, traffic

from .conftest import ROOT

LINKS = Links(gpus_per_node=8, node_bytes_s=100e9, network_bytes_s=25e9)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_gpu_sends_nothing_and_takes_its_own_time(stage: int) -> None:
    sent = traffic(stage, 10**8, 4, 1)
    assert sent == Traffic(0.0, 0.0)
    assert step_bounds(0.05, sent, 1e9) == (0.05, 0.05)


def test_two_gpus_on_paper() -> None:
    """100 M parameters of 4 bytes; half of 400 MB a pass."""
    assert traffic(0, 10**8, 4, 2) == Traffic(400e6, 0.0)
    assert traffic(1, 10**8, 4, 2) == traffic(2, 10**8, 4, 2) == Traffic(200e6, 200e6)
    assert traffic(3, 10**8, 2, 2) == Traffic(100e6, 200e6)
    # At 1 GB/s: gradients 0.2 s, of which 2/3 of 0.15 s hide; weights 0.2 s.
    low, high = step_bounds(0.15, traffic(1, 10**8, 4, 2), 1e9)
    assert (low, high) == pytest.approx((0.15 + 0.1 + 0.2, 0.15 + 0.2 + 0.2))


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    assert [LINKS.bytes_s(n) for n in (2, 8, 16)] == [100e9, 100e9, 25e9]


def test_the_command_prints_a_line_for_each_number_of_gpus() -> None:
    recipe = str(ROOT / "train" / "recipes" / "paper.toml")
    options = ["--recipe", recipe, "--step-s", "0.1", "--samples", "200"]
    ended = CliRunner().invoke(main, [*options, "--node-gb-s", "100", "--network-gb-s", "25"])
    assert ended.exit_code == 0, ended.output
    first, *_ = ended.output.splitlines()
    assert first.startswith("An estimate: 108.8 M parameters of 4 bytes, ZeRO-1")
    rows = [line for line in ended.output.splitlines() if line.startswith("| ")][1:]
    assert rows[0] == "| 1 | 200 | 0 | 100.0 to 100.0 | 2,000 to 2,000 | 100 to 100 % |"
    # 8 GPUs: 2 passes of 7/8 * 435.3 MB at 100 GB/s are 3.8 ms each; the gradients' may hide.
    assert rows[3] == "| 8 | 1,600 | 762 | 103.8 to 107.6 | 14,867 to 15,413 | 93 to 96 % |"
    assert len(rows) == 7
    ended = CliRunner().invoke(main, [*options, "--node-gb-s", "0", "--network-gb-s", "25"])
    assert ended.exit_code == 2
