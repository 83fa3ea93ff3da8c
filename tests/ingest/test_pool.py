"""Worker processes: none is forked, and no pixels travel between them."""

import subprocess
import sys
from pathlib import Path

import pytest

# A spawned worker runs this module's first lines, too. GDAL's threads and locks do not survive a
# fork (`man 2 fork`), so any of this process or of a worker ends it.
PROGRAM = """
import os
import sys
from multiprocessing.connection import Connection

LOG = os.environ["MESSAGES"]


def refuse():
    os.write(2, b"forked\\n")
    os._exit(99)


def note(self, buffer, *, send=Connection._send_bytes):
    with open(LOG, "a") as log:
        print(len(buffer), file=log)
    return send(self, buffer)


os.register_at_fork(before=refuse)
Connection._send_bytes = note

if __name__ == "__main__":
    import rasterio

    rasterio.open(sys.argv.pop(1)).read()
    from fusmae_ingest import cli

    cli.main()
"""


@pytest.fixture
def run(archive_v1, tmp_path, monkeypatch):
    """Runs `fusmae-ingest ARGS` after a raster was read; the bytes of each message it sent."""
    program, log = tmp_path / "program.py", tmp_path / "messages"
    program.write_text(PROGRAM)
    monkeypatch.setenv("MESSAGES", str(log))
    raster = next(archive_v1.rglob("*.tif"))

    def run(*args: object) -> list[int]:
        log.write_text("")
        command = [sys.executable, str(program), str(raster), *map(str, args)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return [int(line) for line in log.read_text().split()]

    return run


def test_nothing_forks_after_gdal_was_used_and_no_pixels_leave_a_process(
    archive_v1, run, paths, tmp_path
):
    out: Path = tmp_path / "d"
    args = (*paths(archive_v1), "--out", out, "--samples-per-shard", 4, "--workers", 2)
    messages = run("bigearthnet", *args, "--format", "shards", "--format", "zarr")
    num_shards = len(list(out.glob("shards/*/*.tar")))
    # Each job goes to a worker and its result comes back.
    assert len(messages) >= 2 * num_shards > 2
    # Less than the least that a block has of pixels: 2 bands of 20 x 20 uint16 of 4 samples.
    assert max(messages) < 4 * 2 * 20 * 20 * 2


def test_verify_forks_nothing_either(made_datasets, archive_v2, run):
    folders = ("BigEarthNet-S2", "BigEarthNet-S1", "Reference_Maps")
    sources = [word for name in folders for word in ("--source", archive_v2 / name)]
    assert run("verify", made_datasets["v2"], *sources, "--workers", 2)
