"""Which codec, which chunks and whose pipeline for the zarr stores, measured on real pixels.

    python tests/benchmarks/zarr_codecs.py --out tests/benchmarks/results/zarr_codecs.json

Two tables. `codecs`: the codec alone, on chunks of 1 to 64 samples. `pipelines`: the whole way
from a stack to a shard on disk and back, with the codec that ingest uses. CPU time of the
process, all threads; rounds are interleaved, so a busy moment hits every candidate alike.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numcodecs.zstd
import numpy as np
import zarr
from numcodecs import blosc
from real_content import REAL_V1, Pixels, read_pairs, sen12ms_windows, stack_of

from fusmae.sensors import BIGEARTHNET_ARRAYS, ArraySpec
from fusmae_ingest.layout import store_path, zarr_shard_path
from fusmae_ingest.zarr_store import encode_group, shard_parts

CHUNKS = (1, 4, 16, 64)
SHUFFLES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
PIPELINES = {
    "zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarrs": "zarrs.ZarrsCodecPipeline",
}

ACTIONS = ("write", "read_all", "read_one")

Codec = tuple[Callable[[Pixels], Any], Callable[[Any], Any]]


def codecs() -> dict[str, Codec]:
    """Name -> (encode, decode), each on one chunk."""
    # Needs pcodec, which `main` has looked for by now.
    from numcodecs.pcodec import PCodec

    table: dict[str, Codec] = {"none": (lambda chunk: chunk.tobytes(), np.frombuffer)}
    for name in ("lz4", "zstd"):
        for level in (1, 3, 5):
            for shuffle, code in SHUFFLES.items():
                encode = partial(blosc.compress, cname=name.encode(), clevel=level, shuffle=code)
                table[f"blosc-{name}-{level}-{shuffle}"] = (encode, blosc.decompress)
    for level in (1, 3):
        encode = partial(numcodecs.zstd.compress, level=level)
        table[f"zstd-{level}"] = (encode, numcodecs.zstd.decompress)
    for level in (4, 8):
        pcodec = PCodec(level=level)
        table[f"pcodec-{level}"] = (pcodec.encode, pcodec.decode)
    return table


def contents(num_samples: int) -> dict[str, Pixels]:
    """Stacks by name: BigEarthNet's four arrays, and windows of SEN12MS as other content."""
    pairs = list(read_pairs(REAL_V1))
    stacks = {
        spec.name: stack_of([pair.arrays[spec.name] for pair in pairs], num_samples)
        for spec in BIGEARTHNET_ARRAYS
    }
    for name, windows in sen12ms_windows().items():
        stacks[f"sen12ms {name}"] = stack_of(windows, num_samples)
    return stacks


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU seconds, result)."""
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def measure_codecs(stacks: dict[str, Pixels], rounds: int) -> list[dict[str, Any]]:
    blosc.set_nthreads(1)
    cases = [
        (content, name, chunk)
        for content in stacks
        for name in codecs()
        for chunk in CHUNKS
        if chunk == CHUNKS[0] or not content.startswith("sen12ms")
    ]
    encode_s, decode_s, sizes = defaultdict(list), defaultdict(list), {}
    for _ in range(rounds):
        for case in cases:
            content, name, chunk = case
            encode, decode = codecs()[name]
            stack = stacks[content]
            pieces = [stack[at : at + chunk] for at in range(0, len(stack), chunk)]
            seconds, encoded = timed(lambda: list(map(encode, pieces)))  # noqa: B023
            encode_s[case].append(seconds)
            seconds, decoded = timed(lambda: list(map(decode, encoded)))  # noqa: B023
            decode_s[case].append(seconds)
            sizes[case] = sum(len(data) for data in encoded)
            assert np.asarray(decoded[-1]).tobytes() == pieces[-1].tobytes(), case
    return [
        {
            "content": content,
            "dtype": str(stacks[content].dtype),
            "codec": name,
            "chunk_samples": chunk,
            "ratio": round(stacks[content].nbytes / sizes[case], 4),
            "encode_mb_per_s": _rate(stacks[content].nbytes, encode_s[case]),
            "decode_mb_per_s": _rate(stacks[content].nbytes, decode_s[case]),
        }
        for case in cases
        for content, name, chunk in [case]
    ]


def _rate(num_bytes: int, seconds: list[float]) -> dict[str, float]:
    return machine.spread([num_bytes / s / 1e6 for s in seconds], 1)


def declare(folder: Path, spec: ArraySpec, num_samples: int, chunk: int | None) -> Path:
    """An empty array as ingest declares it, its chunks changed to `chunk` samples if given."""
    rows = {"row": (("sample",), np.arange(num_samples), {})}
    store = folder / store_path("train")
    for path, data in encode_group([spec], num_samples, rows, {}).items():
        (store / path).parent.mkdir(parents=True, exist_ok=True)
        (store / path).write_bytes(data)
    if chunk is not None:
        ours = zarr.open_array(store, path=spec.name)
        zarr.create_array(
            store,
            name=spec.name,
            shape=ours.shape,
            dtype=ours.dtype,
            chunks=(chunk, *spec.shape),
            shards=ours.shards,
            compressors=ours.compressors,
            fill_value=0,
            overwrite=True,
        )
    return store


def write_ours(store: Path, spec: ArraySpec, stack: Pixels) -> None:
    path = store / Path(zarr_shard_path("train", spec, 0)).relative_to(store_path("train"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(shard_parts(spec, stack, len(stack))))


def write_zarr(store: Path, spec: ArraySpec, stack: Pixels) -> None:
    zarr.open_array(store, path=spec.name, mode="r+")[:] = stack


def read_rows(store: Path, spec: ArraySpec, rows: list[int]) -> None:
    array = zarr.open_array(store, path=spec.name, mode="r")
    for row in rows:
        array[row]


def measure_pipelines(
    stacks: dict[str, Pixels], rounds: int, scratch: Path
) -> list[dict[str, Any]]:
    """CPU ms a sample, all four arrays of it: to a shard on disk, back whole, one at random."""
    num_samples = len(stacks["s1"])
    rows = np.random.default_rng(0).integers(0, num_samples, 32).tolist()
    cases = [("ours", None), *((name, chunk) for name in PIPELINES for chunk in CHUNKS)]
    times: dict[tuple[Any, str], list[float]] = defaultdict(list)
    for turn in range(rounds):
        for case in cases:
            name, chunk = case
            total = dict.fromkeys(ACTIONS, 0.0)
            reader = PIPELINES["zarr-python" if name == "ours" else name]
            for spec in BIGEARTHNET_ARRAYS:
                stack = stacks[spec.name]
                folder = scratch / f"{turn}-{name}-{chunk}-{spec.name}"
                write = write_ours if name == "ours" else write_zarr
                with zarr.config.set({"codec_pipeline.path": reader}):
                    store = declare(folder, spec, num_samples, chunk)
                    total["write"] += timed(partial(write, store, spec, stack))[0] / num_samples
                    array = zarr.open_array(store, path=spec.name, mode="r")
                    seconds, back = timed(lambda: array[:])  # noqa: B023
                    assert back.tobytes() == stack.tobytes(), case
                    total["read_all"] += seconds / num_samples
                    total["read_one"] += timed(partial(read_rows, store, spec, rows))[0] / len(rows)
            for what, seconds in total.items():
                times[case, what].append(1e3 * seconds)
    return [
        {
            "pipeline": name,
            "chunk_samples": chunk or 16,
            **{f"{what}_ms": machine.spread(times[(name, chunk), what]) for what in ACTIONS},
        }
        for name, chunk in cases
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--shard-samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if not REAL_V1.is_dir():
        parser.error(f"{REAL_V1} is absent: codecs are compared on real pixels only")
    report = {
        "benchmark": "zarr codecs, chunks and pipelines",
        "machine": machine.describe("zarr", "numcodecs", "pcodec", "zarrs", "numpy"),
        "config": {
            "samples": options.samples,
            "shard_samples": options.shard_samples,
            "rounds": options.rounds,
            "content": "6 real BigEarthNet v1 pairs, and 12 windows of 120 px of 3 real SEN12MS "
            "pairs; more samples are varied copies that share no rows",
            "time": "CPU seconds of the process, all threads; median, min and max of the rounds",
        },
        "codecs": measure_codecs(contents(options.samples), options.rounds),
    }
    with tempfile.TemporaryDirectory() as scratch:
        shards = contents(options.shard_samples)
        report["pipelines"] = measure_pipelines(shards, options.rounds, Path(scratch))
    machine.write(options.out, report)
    for row in report["codecs"]:
        print(
            f"{row['content']:15} {row['codec']:24} chunk {row['chunk_samples']:2} "
            f"ratio {row['ratio']:.3f} encode {row['encode_mb_per_s']['median']:6.0f} MB/s "
            f"decode {row['decode_mb_per_s']['median']:6.0f} MB/s"
        )
    for row in report["pipelines"]:
        print(
            f"{row['pipeline']:12} chunk {row['chunk_samples']:2} CPU ms a sample: "
            + " ".join(
                f"{w} {row[f'{w}_ms']['median']:.3f}" for w in ("write", "read_all", "read_one")
            )
        )


if __name__ == "__main__":
    main()
