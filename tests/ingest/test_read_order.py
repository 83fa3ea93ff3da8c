"""A block reads its samples in the archive's order, and writes them in its own."""

import numpy as np

from fusmae.sample import decode
from fusmae_ingest import bigearthnet
from fusmae_ingest.bigearthnet_pair import read_pair


def test_reads_within_a_block_go_in_the_archives_order(
    archive_v1, fusmae_ingest, paths, tmp_path, monkeypatch
):
    read = []

    def spy(pair, rows):
        read.append(pair.name)
        return read_pair(pair, rows)

    monkeypatch.setattr(bigearthnet, "read_pair", spy)
    out = tmp_path / "d"
    args = ("bigearthnet", *paths(archive_v1), "--out", out, "--samples-per-shard", 8)
    assert fusmae_ingest(*args).returncode == 0
    # Eight are noted before the first block: see `begun`.
    del read[:8]
    blocks = []
    for shard in out.glob("shards/*/*.tar"):
        blocks.append([sample["__key__"] for sample in decode(shard.read_bytes())])
    # Names sort as their folders do.
    begins = np.cumsum([0, *(len(block) for block in blocks)])
    assert begins[-1] == len(read) == 24
    assert any(block != sorted(block) for block in blocks)
    for block in blocks:
        first = min(read.index(name) for name in block)
        assert read[first : first + len(block)] == sorted(block)
