"""Blocks and their order as pure functions."""

from hypothesis import given
from hypothesis import strategies as st

from fusmae_ingest.plan import fill, limit, names_digest, plan_blocks, shuffle

SPLITS = ("train", "val", "test")
split_maps = st.dictionaries(st.text(min_size=1, max_size=8), st.sampled_from(SPLITS), max_size=60)


@given(split_maps, st.integers(1, 9), st.integers(0, 3))
def test_every_sample_is_in_exactly_one_block_of_its_split(split_of, size, seed):
    blocks = plan_blocks(split_of, SPLITS, size, seed)
    placed = [(name, block.split) for block in blocks for name in block.names]
    assert sorted(placed) == sorted(split_of.items())
    for split in SPLITS:
        sizes = [len(block.names) for block in blocks if block.split == split]
        assert all(s == size for s in sizes[:-1]) and all(0 < s <= size for s in sizes)


@given(st.sets(st.text(min_size=1, max_size=8)), st.integers(0, 3), st.randoms())
def test_order_depends_on_the_set_alone_and_survives_removals(names, seed, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    order = shuffle(shuffled, seed, "train")
    assert order == shuffle(sorted(names), seed, "train")
    dropped = set(order[::3])
    assert shuffle(names - dropped, seed, "train") == [n for n in order if n not in dropped]


def test_seeds_and_splits_give_other_orders_of_the_same_names():
    names = [f"n{i}" for i in range(50)]
    orders = {tuple(shuffle(names, s, split)) for s in (0, 1) for split in SPLITS}
    assert len(orders) == 6 and all(sorted(o) == sorted(names) for o in orders)


def test_limit_draws_from_all_splits_and_nests():
    split_of = {f"n{i}": SPLITS[i % 3] for i in range(300)}
    small, large = limit(split_of, 30, 0), limit(split_of, 90, 0)
    assert len(small) == 30 and small.items() <= large.items() <= split_of.items()
    assert set(small.values()) == set(SPLITS)


def test_digest_sees_names_and_splits_but_not_order():
    a = {"x": "train", "y": "val"}
    assert names_digest(a) == names_digest(dict(reversed(a.items())))
    assert (
        len({names_digest(a), names_digest({"x": "train"}), names_digest({**a, "y": "test"})}) == 3
    )


def fill_by_hand(order, bad):
    """Walk the places from the front; each hole takes the last good name not yet used."""
    filled, unused = [], list(order)
    while unused:
        name = unused.pop(0)
        while name in bad and unused:
            name = unused.pop()
        if name not in bad:
            filled.append(name)
    return filled


@given(st.lists(st.integers(0, 40), unique=True), st.sets(st.integers(0, 40)))
def test_holes_are_filled_from_the_end(order, bad):
    filled = fill(order, bad)
    assert filled == fill_by_hand(order, bad)
    assert sorted(filled) == sorted(set(order) - bad)
    # Only holes and the tail change.
    kept = [name for place, name in enumerate(filled) if order[place] == name]
    assert len(filled) - len(kept) <= len(bad & set(order))


@given(split_maps, st.integers(1, 5), st.randoms())
def test_bad_names_change_their_own_blocks_and_the_tail(split_of, size, random):
    bad = {name for name in split_of if random.random() < 0.2}
    before = plan_blocks(split_of, SPLITS, size, 0)
    after = plan_blocks(split_of, SPLITS, size, 0, bad)
    good = {name: split for name, split in split_of.items() if name not in bad}
    assert sorted(n for block in after for n in block.names) == sorted(good)
    last = {block.split: block.index for block in after}
    for old, new in zip(
        [b for b in before if b.index < last.get(b.split, 0)],
        [b for b in after if b.index < last[b.split]],
        strict=True,
    ):
        assert (old == new) == (not bad & set(old.names))
