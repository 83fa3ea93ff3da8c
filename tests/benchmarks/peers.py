"""What ours is compared with, each a command in a process of its own.

    python tests/benchmarks/peers.py rasterio-loop ARCHIVE OUT --workers 2

`rasterio-loop` is what the field writes by hand: every band through rasterio, arrays of each
resolution as .npy members of WebDataset shards.

`rico-hdl-stand-in` is a stand-in and NOT rico-hdl, which is not on PyPI and asks for a database
of 100 TB of address space. It works as rico-hdl does (rsim-tu-berlin/rico-hdl at dc41c07):
rasterio opens every band in a spawned process pool, 512 patches are submitted and drained in
order inside one LMDB transaction, S1 and S2 patches are values of their own, safetensors
without metadata. rico-hdl itself took 14.8 ms CPU a pair, measured on a machine of this kind.

`bare-bytes` is no peer but what nobody gets below: every band's file is read as it is, its bytes
are hashed and written, and nothing is decoded, checked, counted or told.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import rasterio
import safetensors.numpy
import webdataset

S2_10M = ("B02", "B03", "B04", "B08")
S2_20M = ("B05", "B06", "B07", "B8A", "B11", "B12")
S2_60M = ("B01", "B09")
S2_BANDS = (*S2_10M, *S2_20M, *S2_60M)
S1_BANDS = ("VV", "VH")

# rico-hdl's own: patches between two commits.
CHUNK = 512
# Address space, not disk: rico-hdl's 100 TB are refused where memory is not overcommitted.
MAP_BYTES = 64 << 30
SHARD_SAMPLES = 1024
BARE_PAIRS = 256


def folders(archive: Path, root: str) -> list[Path]:
    return sorted((archive / root).glob("S[12]*"))


def read_bands(patch: Path, bands: tuple[str, ...]) -> list[np.ndarray]:
    layers = []
    for band in bands:
        with rasterio.open(patch / f"{patch.name}_{band}.tif") as file:
            layers.append(file.read(1))
    return layers


def write_shards(s2_patches: list[Path], partner: dict[str, Path], pattern: str) -> None:
    with webdataset.ShardWriter(pattern, maxcount=SHARD_SAMPLES, verbose=0) as writer:
        for s2 in s2_patches:
            s1 = partner[s2.name]
            facts = json.loads((s2 / f"{s2.name}_labels_metadata.json").read_text())
            writer.write(
                {
                    "__key__": s2.name,
                    "s1.npy": np.stack(read_bands(s1, S1_BANDS)),
                    "s2_10m.npy": np.stack(read_bands(s2, S2_10M)),
                    "s2_20m.npy": np.stack(read_bands(s2, S2_20M)),
                    "s2_60m.npy": np.stack(read_bands(s2, S2_60M)),
                    "json": facts | {"s1_name": s1.name},
                }
            )


def rasterio_loop(archive: Path, out: Path, workers: int) -> None:
    """The loop; with several workers each takes every n-th pair and writes its own shards."""
    partner = {}
    for s1 in folders(archive, "BigEarthNet-S1-v1.0"):
        facts = json.loads((s1 / f"{s1.name}_labels_metadata.json").read_text())
        partner[facts["corresponding_s2_patch"]] = s1
    patches = folders(archive, "BigEarthNet-v1.0")
    if workers == 1:
        write_shards(patches, partner, f"{out}/shard-%06d.tar")
        return
    tasks = [
        (patches[worker::workers], partner, f"{out}/{worker}-shard-%06d.tar")
        for worker in range(workers)
    ]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(write_shards, tasks)


def encode_patch(patch: Path, bands: tuple[str, ...]) -> bytes:
    layers = read_bands(patch, bands)
    return safetensors.numpy.save(dict(zip(bands, layers, strict=True)))


def rico_hdl_stand_in(archive: Path, out: Path, workers: int) -> None:
    tasks = [(patch, S1_BANDS) for patch in folders(archive, "BigEarthNet-S1-v1.0")]
    tasks += [(patch, S2_BANDS) for patch in folders(archive, "BigEarthNet-v1.0")]
    context = multiprocessing.get_context("spawn")
    with (
        lmdb.open(str(out), map_size=MAP_BYTES) as database,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
    ):
        for first in range(0, len(tasks), CHUNK):
            chunk = tasks[first : first + CHUNK]
            futures = [pool.submit(encode_patch, *task) for task in chunk]
            with database.begin(write=True) as transaction:
                for (patch, _), future in zip(chunk, futures, strict=True):
                    stored = transaction.put(patch.name.encode(), future.result(), overwrite=False)
                    assert stored, patch


def copy_bytes(pairs: list[tuple[Path, Path]], prefix: str) -> None:
    """Files of BARE_PAIRS pairs each, on the disk as ours are."""
    room = memoryview(bytearray(1 << 20))
    for first in range(0, len(pairs), BARE_PAIRS):
        digest = hashlib.sha256()
        with Path(f"{prefix}{first:06d}").open("wb", buffering=0) as written:
            for s1, s2 in pairs[first : first + BARE_PAIRS]:
                end = 0
                for patch, bands in ((s1, S1_BANDS), (s2, S2_BANDS)):
                    for band in bands:
                        file = os.open(f"{patch}/{patch.name}_{band}.tif", os.O_RDONLY)
                        end += os.readv(file, [room[end:]])
                        os.close(file)
                digest.update(room[:end])
                written.write(room[:end])
            os.fsync(written.fileno())


def bare_bytes(archive: Path, out: Path, workers: int) -> None:
    sensors = (folders(archive, root) for root in ("BigEarthNet-S1-v1.0", "BigEarthNet-v1.0"))
    pairs = list(zip(*sensors, strict=True))
    tasks = [(pairs[worker::workers], f"{out}/{worker}-") for worker in range(workers)]
    if workers == 1:
        copy_bytes(*tasks[0])
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(copy_bytes, tasks)


PEERS = {
    "rasterio-loop": rasterio_loop,
    "rico-hdl-stand-in": rico_hdl_stand_in,
    "bare-bytes": bare_bytes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    PEERS[options.peer](options.archive, options.out, options.workers)


if __name__ == "__main__":
    main()
