"""A block whose run has ended writes nothing any more, at whatever step it learns of that."""

import pytest

from fusmae.sample import ShardLayout
from fusmae.sensors import S1
from fusmae_ingest.convert import Job, Sample, convert
from fusmae_ingest.plan import Block
from fusmae_ingest.storage import LocalStore
from fusmae_ingest.turn import has_turn, take_turn


def read(source, rows) -> Sample:
    rows["s1"][...] = source.position
    facts = {"crs": "EPSG:32632", "transform": [10.0, 0.0, 0.0, 0.0, -10.0, 0.0], "labels": {}}
    return Sample(source.name, facts)


def read_badly(source, rows) -> Sample:
    raise ValueError("bad")


class Source:
    def __init__(self, position: int) -> None:
        self.position, self.name = position, f"sample{position}"


def job(store: LocalStore, reader=read) -> Job:
    sources = tuple(map(Source, range(3)))
    block = Block("train", 0, tuple(source.name for source in sources))
    return Job(
        store,
        take_turn(store),
        "name",
        block,
        sources,
        (),
        reader,
        ShardLayout((S1,)),
        3,
        frozenset(["shards", "zarr"]),
        True,
        {},
    )


def files(store: LocalStore) -> set[str]:
    return set(store.sizes())


# In the order of their writing.
SHARD, ZARR, STATISTICS, RECORD = (
    "shards/train/name-train-000000.tar",
    "zarr/train.zarr/s1/c/0/0/0/0",
    ".ingest/statistics/train-000000.npz",
    ".ingest/blocks/train-000000.json",
)


def test_a_block_writes_while_it_is_its_turn(tmp_path):
    store = LocalStore(str(tmp_path / "d"))
    assert convert(job(store)) == 0
    assert files(store) == {".ingest/turn", SHARD, ZARR, STATISTICS, RECORD}


@pytest.mark.parametrize("reader", [read, read_badly])
def test_a_block_whose_turn_ended_while_it_was_read_leaves_nothing(tmp_path, reader):
    store = LocalStore(str(tmp_path / "d"))
    late = job(store, reader)
    with pytest.raises(ValueError, match="another run is writing"):
        convert(late, lambda: take_turn(store))
    assert files(store) == {".ingest/turn"}


@pytest.mark.parametrize(
    ("during", "named"),
    [(SHARD, []), (ZARR, [SHARD]), (STATISTICS, [SHARD, ZARR, STATISTICS])],
)
def test_a_turn_that_ends_while_a_file_is_written_keeps_the_rest_from_their_names(
    tmp_path, monkeypatch, during, named
):
    store = LocalStore(str(tmp_path / "d"))
    late = job(store)
    create = LocalStore.create

    def create_late(self, path):
        if path == during:
            take_turn(store)
        return create(self, path)

    monkeypatch.setattr(LocalStore, "create", create_late)
    with pytest.raises(ValueError, match="another run is writing"):
        convert(late)
    assert files(store) == {".ingest/turn", *named}


def test_a_removed_or_finished_dataset_is_nobodys_turn(tmp_path):
    store = LocalStore(str(tmp_path / "d"))
    turn = take_turn(store)
    assert has_turn(store, turn) and not has_turn(store, "other")
    store.remove_folder(".ingest")
    assert not has_turn(store, turn)
