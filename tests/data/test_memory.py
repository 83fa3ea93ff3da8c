"""Memory of a loader: the ring's, whatever the dataset's size and however long it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusmae.sample import array_bytes
from fusmae.sensors import BIGEARTHNET_ARRAYS

from .tiny_dataset import write_tiny_dataset

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]

BATCH, RING, NUM_SAMPLES = 8, 3, 96
BATCH_BYTES = BATCH * sum(array_bytes(spec) for spec in BIGEARTHNET_ARRAYS)
# Threads' stacks, the order, the interpreter's own. Measured: at most 0.3 MB beside the batches
# after an epoch, 0.02 MB more after nine; to keep one sample of a batch would make 26 MB.
SLACK_BYTES = 10**6
# Makes glibc give back what is freed: its heaps keep up to 5 MB of a stream's batches otherwise.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}

PROGRAM = """
import json, re, sys
from pathlib import Path
from fusmae.config import DataConfig
from fusmae.data import TrainLoader, open_dataset

kind, dataset, batch, ring, num_samples = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])

def anonymous():  # the page cache, where the shards are, is not the process's own
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def batches():
    if kind == "loader":
        loader = TrainLoader(Path(dataset), DataConfig(), 0, batch, 0, 1, batch, ring=ring)
        yield from loader
    else:
        yield from open_dataset(dataset).stream(batch)

used = [anonymous()]
for number, _ in enumerate(batches(), 1):
    if number % (num_samples // batch) == 0:
        used.append(anonymous())
    if len(used) == 10:
        break
print(json.dumps(used))
"""


@pytest.fixture(scope="module")
def genuine_sizes(tmp_path_factory):
    """26 MB of samples, four times what a ring holds."""
    folder = tmp_path_factory.mktemp("genuine")
    return write_tiny_dataset(folder, {"train": (24,) * 4}, BIGEARTHNET_ARRAYS)


@pytest.mark.parametrize(("kind", "num_batches"), [("loader", RING), ("stream", RING + 1)])
def test_memory_is_that_of_the_ring_and_does_not_grow_over_epochs(genuine_sizes, kind, num_batches):
    arguments = [kind, str(genuine_sizes), *map(str, (BATCH, RING, NUM_SAMPLES))]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **MALLOC},
    )
    before, first, *later = json.loads(done.stdout or "[]") or pytest.fail(done.stderr)
    assert max(first, *later) - before <= num_batches * BATCH_BYTES + SLACK_BYTES
    # A stream's batches are new each time: how much of those ahead is read by now varies.
    if kind == "loader":
        assert max(later) - first <= SLACK_BYTES
