"""Label fractions: seeded, nested, without replacement, blind to the order of the keys."""

import pytest

from fusmae.evaluation.fractions import choose_labelled

KEYS = [f"patch_{index}" for index in range(3000)]


def test_one_percent_lies_inside_ten_percent_of_the_same_seed() -> None:
    one, ten = choose_labelled(KEYS, 0.01, 0), choose_labelled(KEYS, 0.1, 0)
    assert len(one) == 30
    assert len(ten) == 300
    assert set(one) < set(ten) < set(KEYS)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 1.0])
def test_no_sample_is_drawn_twice(fraction: float) -> None:
    chosen = choose_labelled(KEYS, fraction, 7)
    assert len(set(chosen)) == len(chosen) == round(fraction * len(KEYS))


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_keys() -> None:
    assert choose_labelled(KEYS, 0.1, 0) == choose_labelled(KEYS[::-1], 0.1, 0)
    assert set(choose_labelled(KEYS, 0.1, 0)) != set(choose_labelled(KEYS, 0.1, 1))


def test_every_sample_is_equally_likely() -> None:
    seeds = 200
    counts = dict.fromkeys(KEYS[:500], 0)
    for seed in range(seeds):
        for key in choose_labelled(list(counts), 0.2, seed):
            counts[key] += 1
    # Binomial(200, 0.2): mean 40, sd 5.7; 5 sd is exceeded by one of 500 keys with p < 1e-3.
    assert all(abs(count - 40) < 5 * 5.7 for count in counts.values())


def test_a_tiny_fraction_still_has_one_label() -> None:
    assert len(choose_labelled(KEYS, 1e-6, 0)) == 1


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, 10.0])
def test_a_fraction_outside_zero_to_one_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="at most 1"):
        choose_labelled(KEYS, fraction, 0)
