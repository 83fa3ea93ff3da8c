import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusmae.config import DataConfig, SubsetConfig
from fusmae.data import MixedPreprocess, MixtureLoader, Order, Preprocess, SplitReader, TrainLoader
from fusmae.data.mixture import cut_quotas, source_seed
from fusmae.manifest import read_manifest

SEED = 5
# Both datasets have these; their arrays differ in name, size and place of the bands.
BANDS = {"s1": ("VH", "VV"), "s2": ("B8A", "B02", "B01")}
DATA = DataConfig(bands=BANDS)
QUOTAS = (24, 8)
SIZES = ((12, 12, 12, 5), (9, 9))  # of tiny_dataset, of tiny_sen12ms
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="session")
def datasets(tiny_dataset, tiny_sen12ms):
    return tiny_dataset, tiny_sen12ms


def mixture(datasets, quotas=QUOTAS, rank=0, world_size=1, micro_batch=32, data=DATA, **options):
    shares = cut_quotas(quotas, world_size, micro_batch)
    return MixtureLoader(
        [
            TrainLoader(
                dataset,
                data,
                source_seed(SEED, number),
                quota,
                rank,
                world_size,
                share,
                **options,
            )
            for number, (dataset, quota, share) in enumerate(
                zip(datasets, quotas, shares, strict=True)
            )
        ]
    )


def expected_step(step):
    """A global batch by its definition: position in the mixture -> (source, row)."""
    places = {}
    for source, (quota, sizes) in enumerate(zip(QUOTAS, SIZES, strict=True)):
        order = Order(sizes, source_seed(SEED, source))
        first = step * sum(QUOTAS) + sum(QUOTAS[:source])
        for place, row in enumerate(order.samples(step * quota, quota).tolist()):
            places[first + place] = (source, row)
    return places


def read(batch):
    return dict(zip(batch.positions.tolist(), map(tuple, batch.sample_ids.tolist()), strict=True))


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([4, 8, 16, 32]), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_ranks_and_micro_batches_only_cut_the_same_global_batches(
    datasets, world_size, micro_batch, num_threads
):
    if micro_batch * world_size > sum(QUOTAS):
        micro_batch = sum(QUOTAS) // world_size
    per_step = sum(QUOTAS) // (world_size * micro_batch)
    loaders = [
        mixture(datasets, QUOTAS, rank, world_size, micro_batch, num_threads=num_threads)
        for rank in range(world_size)
    ]
    for step in range(4):  # more than two epochs of the first, one of the second
        places = {}
        for loader in loaders:
            for batch in itertools.islice(loader, per_step):
                assert len(batch.positions) == micro_batch
                assert not places.keys() & read(batch).keys()
                places |= read(batch)
        assert places == expected_step(step)
    assert len({json.dumps(loader.state_dict()) for loader in loaders}) == 1
    for loader in loaders:
        loader.close()


@given(st.integers(0, 5), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 8]))
@settings(max_examples=15, deadline=None)
def test_resuming_gives_the_tail_also_on_other_ranks(datasets, steps, before, after):
    with mixture(datasets, world_size=before, micro_batch=32 // before) as loader:
        for _ in range(steps):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
    places = {}
    for rank in range(after):
        with mixture(datasets, QUOTAS, rank, after, 32 // after) as loader:
            loader.load_state_dict(state)
            places |= read(next(loader))
    assert places == expected_step(steps)


def test_one_dataset_is_the_plain_loader(tiny_dataset):
    with (
        TrainLoader(tiny_dataset, DATA, SEED, 8, 0, 1, 4, start=3) as plain,
        mixture((tiny_dataset,), (8,), micro_batch=4, start=3) as mixed,
    ):
        for _ in range(12):
            one, other = next(plain), next(mixed)
            assert other.positions.tolist() == one.positions.tolist()
            assert other.sample_ids.tolist() == [[0, row] for row in one.sample_ids.tolist()]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 50))
def test_positions_of_all_sources_are_each_number_once(quotas, steps):
    # The formula of the docstring, in plain Python.
    total, seen = sum(quotas), []
    for source, quota in enumerate(quotas):
        offset = sum(quotas[:source])
        seen += [p // quota * total + offset + p % quota for p in range(steps * quota)]
    assert sorted(seen) == list(range(steps * total))


def test_images_are_each_datasets_own_bands_by_its_own_statistics(datasets):
    manifests = [read_manifest(dataset) for dataset in datasets]
    preprocess = MixedPreprocess([Preprocess(manifest, BANDS, 12) for manifest in manifests])
    with mixture(datasets, (6, 2), micro_batch=8) as loader:
        batch = next(loader)
        images = preprocess(batch.parts)
    assert {name: image.shape for name, image in images.items()} == {
        "s1": (8, 2, 12, 12),
        "s2": (8, 3, 12, 12),
    }
    for place, (source, row) in enumerate(batch.sample_ids.tolist()):
        reader = SplitReader(datasets[source], "train")
        rows = {spec.name: np.empty((1, *spec.shape), spec.dtype) for spec in reader.arrays}
        reader.read_into(np.array([row]), rows)
        for sensor, names in BANDS.items():
            for channel, name in enumerate(names):
                spec, index = manifests[source].find_band(sensor, name)
                mean, std = manifests[source].band_statistics(spec.name, name)
                pixels = (torch.from_numpy(rows[spec.name][:, [index]].astype("f8")) - mean) / std
                expected = torch.nn.functional.interpolate(pixels, (12, 12), mode="bilinear")
                # Float32 against float64, as in test_transforms.
                torch.testing.assert_close(
                    images[sensor][place, channel].double(), expected[0, 0], rtol=0, atol=4e-5
                )


def test_a_subset_of_one_dataset_leaves_the_other_whole(datasets):
    half = replace(DATA, subset=SubsetConfig(fraction=0.5))
    with (
        TrainLoader(datasets[0], half, SEED, 20, 0, 1, 20) as first,
        TrainLoader(datasets[1], DATA, SEED, 18, 0, 1, 18) as second,
        MixtureLoader([first, second]) as loader,
    ):
        ids = next(loader).sample_ids
    assert len(set(ids[:20, 1].tolist())) == 20 == first.num_samples
    assert sorted(ids[20:, 1].tolist()) == list(range(18))


def test_a_state_of_another_mixture_is_refused(datasets):
    with mixture(datasets) as loader:
        state = loader.state_dict()
        swapped = {"sources": state["sources"][::-1]}
        with pytest.raises(
            ValueError, match=r"samples: num_samples was 18 and is 41; .*the shards have other"
        ):
            loader.load_state_dict(swapped)
    with (
        mixture(datasets[:1], (32,)) as single,
        pytest.raises(ValueError, match="mixture of 1 datasets from a state of 2"),
    ):
        single.load_state_dict(state)
    with (
        mixture(datasets) as loader,
        pytest.raises(ValueError, match=r"no state of a mixture, .* it is \['consumed', 'digest'"),
    ):
        loader.load_state_dict(state["sources"][0])


def test_a_state_that_is_refused_changes_nothing(datasets):
    with mixture(datasets) as loader:
        next(loader)
        first, second = loader.state_dict()["sources"]
    of_another = {"sources": [first, {**second, "digest": "0"}]}
    with mixture(datasets) as loader:
        next(loader), next(loader)
        for wrong in (of_another, {"sources": [first, {**second, "consumed": 0}]}):
            with pytest.raises(ValueError, match="cannot resume"):
                loader.load_state_dict(wrong)
        assert read(next(loader)) == expected_step(2)


def rows_by_source(batches):
    """The rows of each source in the order of their positions."""
    places = sorted((place, *row) for batch in batches for place, row in read(batch).items())
    return [[row for _, of, row in places if of == source] for source in range(2)]


@given(st.integers(0, 6), st.tuples(st.integers(1, 40), st.integers(1, 20)))
@settings(max_examples=40, deadline=None)
@example(4, (48, 16))
@example(3, (48, 16))
@example(4, (12, 4))
@example(2, (16, 16))
@example(0, (7, 9))
def test_other_quotas_go_on_with_every_sample_or_are_refused(datasets, steps, quotas):
    with mixture(datasets) as loader:
        before = list(itertools.islice(loader, steps))
        state = loader.state_dict()
    seen = [(steps * 24) / quotas[0], (steps * 8) / quotas[1]]
    with mixture(datasets, quotas, micro_batch=sum(quotas)) as loader:
        if seen[0] != seen[1] or seen[0] % 1:
            with pytest.raises(ValueError, match=r"with quotas .* which is not one whole number"):
                loader.load_state_dict(state)
            return
        loader.load_state_dict(state)
        after = list(itertools.islice(loader, 2))
    for source, sizes in enumerate(SIZES):
        order = Order(sizes, source_seed(SEED, source))
        count = steps * QUOTAS[source] + 2 * quotas[source]
        assert rows_by_source(before + after)[source] == order.samples(0, count).tolist()
    places = [place for batch in before + after for place in batch.positions.tolist()]
    assert sorted(places) == list(range(steps * 32 + 2 * sum(quotas)))


def test_an_error_of_one_source_closes_all(datasets):
    with mixture(datasets) as loader:
        next(loader)
        loader._loaders[1].close()
        with pytest.raises(ValueError, match="closed"):
            next(loader)
        with pytest.raises(ValueError, match="closed"):
            next(loader._loaders[0])


@pytest.mark.parametrize("broken", [0, 1])
def test_the_state_after_an_error_is_that_of_the_last_whole_step(datasets, monkeypatch, broken):
    with mixture(datasets) as loader, mixture(datasets) as other:
        for _ in range(3):
            next(loader)
        ring = loader._loaders[broken]._ring

        def fail():
            raise OSError("the disk is gone")

        monkeypatch.setattr(ring, "next_batch", fail)
        with pytest.raises(OSError, match="gone"):
            next(loader)
        state = loader.state_dict()
        assert [part["consumed"] for part in state["sources"]] == [3 * quota for quota in QUOTAS]
        other.load_state_dict(state)
        assert read(next(other)) == expected_step(3)


def test_images_of_unlike_shapes_are_not_joined(tiny_dataset):
    manifest = read_manifest(tiny_dataset)
    with pytest.raises(ValueError, match="of one shape"):
        MixedPreprocess([Preprocess(manifest, BANDS, size_px) for size_px in (12, 14)])


@pytest.mark.parametrize(
    ("quotas", "world_size", "micro_batch", "message"),
    [
        ((30, 10), 8, 5, "quotas 30, 10 do not divide among the 8 micro-batches of 5"),
        ((30, 11), 1, 8, "a global batch of 41 does not divide"),
        ((24, 8), 3, 8, "on 3 ranks; it must be a multiple of 24"),
        ((24, 8), 1, 0, "micro_batch = 0 must be a whole number, 1 or more"),
    ],
)
def test_quotas_that_do_not_divide_are_refused(quotas, world_size, micro_batch, message):
    with pytest.raises(ValueError, match=message):
        cut_quotas(quotas, world_size, micro_batch)


def test_loaders_that_do_not_keep_step_are_refused(tiny_dataset):
    with (
        TrainLoader(tiny_dataset, DATA, SEED, 8, 0, 1, 8) as one,
        TrainLoader(tiny_dataset, DATA, SEED, 8, 0, 1, 4) as other,
        pytest.raises(ValueError, match=r"these make \[1, 2\]"),
    ):
        MixtureLoader([one, other])


@pytest.mark.parametrize(
    ("taken", "starts", "told"),
    [
        ((1, 0), (0, 0), "0 + 0 samples + 1, 0 + 0 samples + 0"),
        ((2, 0), (0, 0), "1 + 0 samples + 0, 0 + 0 samples + 0"),
        ((0, 0), (24, 0), "1 + 0 samples + 0, 0 + 0 samples + 0"),
        ((0, 0), (3, 3), "0 + 3 samples + 0, 0 + 3 samples + 0"),
    ],
)
def test_loaders_that_are_out_of_step_are_refused(datasets, taken, starts, told):
    with (
        TrainLoader(datasets[0], DATA, SEED, 24, 0, 1, 12, start=starts[0]) as first,
        TrainLoader(datasets[1], DATA, SEED, 8, 0, 1, 4, start=starts[1]) as second,
    ):
        for loader, count in zip((first, second), taken, strict=True):
            for _ in range(count):
                next(loader)
        with pytest.raises(ValueError, match=re.escape(told)):
            MixtureLoader([first, second])


def test_loaders_that_were_read_alike_are_a_mixture(datasets):
    with (
        TrainLoader(datasets[0], DATA, SEED, 24, 0, 1, 12, start=24) as first,
        TrainLoader(datasets[1], DATA, source_seed(SEED, 1), 8, 0, 1, 4) as second,
    ):
        next(first), [next(second) for _ in range(3)]
        with MixtureLoader([first, second]) as loader:
            ahead = [read(next(loader)) for _ in range(2)]
            assert [source["consumed"] for source in loader.state_dict()["sources"]] == [48, 16]
    for step, places in zip((1, 2), ahead, strict=True):  # the rest of one, the first of the next
        assert len(places) == 16 and places.items() <= expected_step(step).items()


def test_what_is_no_list_of_loaders_is_no_mixture(tiny_dataset):
    with TrainLoader(tiny_dataset, DATA, SEED, 8, 0, 1, 8) as one:
        for given, found in (
            ([], "none"),
            ([str(tiny_dataset), one], "str"),
            (one, "one TrainLoader, not in a list"),
            (None, "NoneType"),
        ):
            told = f"a mixture needs a list of one TrainLoader or more, got {found}$"
            with pytest.raises(ValueError, match=told):
                MixtureLoader(given)
        manifest = read_manifest(tiny_dataset)
        with pytest.raises(ValueError, match=r"list of one Preprocess or more, got Manifest$"):
            MixedPreprocess([manifest])
        preprocess = MixedPreprocess([Preprocess(manifest, BANDS, 12)])
        batch = next(MixtureLoader([one]))
        for parts, found in ((batch, "MixedBatch"), (batch.parts * 2, "2")):
            with pytest.raises(ValueError, match=rf"give batch.parts, of 1 sources; got {found}$"):
                preprocess(parts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_mixture_on_a_gpu_is_that_of_a_cpu(datasets):
    manifests = [read_manifest(dataset) for dataset in datasets]
    preprocess = MixedPreprocess([Preprocess(manifest, BANDS, 12) for manifest in manifests])
    with mixture(datasets) as on_cpu, mixture(datasets, pin=True, device="cuda") as on_gpu:
        for _ in range(6):
            ours, theirs = next(on_gpu), next(on_cpu)
            assert ours.positions.is_cuda
            assert ours.positions.tolist() == theirs.positions.tolist()
            assert ours.sample_ids.tolist() == theirs.sample_ids.tolist()
            expected = preprocess.cpu()(theirs.parts)
            actual = preprocess.cuda()(ours.parts)
            for sensor, image in expected.items():
                torch.testing.assert_close(actual[sensor].cpu(), image, rtol=1e-5, atol=4e-5)
