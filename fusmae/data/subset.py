"""Which samples of a split are used: a list of keys, flags that exclude, a drawn fraction.

A pure function of the dataset and a `SubsetConfig`; what comes out are ascending sample ids, for
`Order` to shuffle. Keys and flags stand in `samples.parquet`, and without pyarrow are gathered from
the samples; a fraction needs nothing but the ids.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from fusmae.config import SubsetConfig
from fusmae.data.order import Ids, fold_seed, splitmix64
from fusmae.data.reader import SplitReader

# Keeps the draw of a fraction apart from the order of an epoch with the same seed.
_FRACTION_STREAM = int.from_bytes(b"subset")


def subset_ids(reader: SplitReader, config: SubsetConfig) -> Ids | None:
    """The ascending ids of the samples that `config` asks for; None for the whole split.

    Raises:
        ValueError: no sample is left, the list of keys is missing, empty, has a key twice or one
            that the split has not, or a flag is unknown for a sample; or as
            `SplitReader.column`.
    """
    if config.is_whole:
        return None
    chosen = np.ones(reader.num_samples, np.bool_)
    if config.keys:
        chosen[:] = False
        chosen[_listed_ids(reader, config.keys)] = True
    for flag in config.exclude:
        chosen &= ~_flagged(reader, flag)
    if config.keys or config.exclude:
        reader.check_keys()  # both go by row
    pool = np.flatnonzero(chosen)
    if len(pool) == 0:
        raise ValueError(
            f"no sample of split {reader.split!r} of {reader.dataset} is left by data.subset: "
            f"{config}"
        )
    return draw_fraction(pool, config.fraction, config.seed)


def evaluated_ids(reader: SplitReader, config: SubsetConfig) -> Ids:
    """The ascending ids of the samples of a split to evaluate: those that no flag excludes.

    `exclude` holds for every split that is read; the other fields are of training's samples alone.

    Raises:
        ValueError: as `subset_ids`.
    """
    ids = subset_ids(reader, SubsetConfig(exclude=config.exclude))
    return np.arange(reader.num_samples) if ids is None else ids


def draw_fraction(pool: Ids, fraction: float, seed: int) -> Ids:
    """round(fraction * len(pool)) of the ids, at least one, ascending.

    Ids are ranked by a hash of (seed, id) and the first are taken: nothing is drawn twice, and a
    smaller fraction lies inside a larger one of the same seed and pool.

    Raises:
        ValueError: `fraction` is not in (0, 1], or there are no ids.
    """
    ranked = pool[np.argsort(splitmix64(fold_seed(seed, _FRACTION_STREAM), pool), kind="stable")]
    return np.sort(ranked[: num_drawn(len(pool), fraction)])


def num_drawn(total: int, fraction: float) -> int:
    """How many samples a fraction of `total` is: rounded, at least one.

    Raises:
        ValueError: `fraction` is not in (0, 1], or there is nothing to draw from.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction} must be above 0 and at most 1 (1 % is 0.01)")
    if total < 1:
        raise ValueError("the split has no samples to draw from")
    return max(1, round(fraction * total))


def list_keys(reader: SplitReader, ids: Ids) -> str:
    """The keys of samples, one a line: what `SubsetConfig.keys` reads back.

    Raises:
        ValueError: as `SplitReader.column`.
    """
    keys = reader.keys()
    return "".join(f"{keys[i]}\n" for i in ids.tolist())


def _listed_ids(reader: SplitReader, listed: str | Path | tuple[str, ...]) -> list[int]:
    """The ids of keys, or of those in a file."""
    if isinstance(listed, tuple):
        place, keys, how = "subset.keys", listed, ""
    else:
        place, keys, how = str(listed), _keys_in(Path(listed)), ", one a line"
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise ValueError(f"{place} lists key {twice!r} more than once")
    rows = {key: row for row, key in enumerate(reader.keys())}
    unknown = [key for key in keys if key not in rows]
    if unknown or not keys:
        found = f"{len(unknown)} are not, such as {unknown[0]!r}" if unknown else "it has none"
        raise ValueError(
            f"{place} must list keys of split {reader.split!r} of {reader.dataset}{how}: {found}"
        )
    return [rows[key] for key in keys]


def _keys_in(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the list of keys {path}: {error}") from None
    return tuple(key for line in lines if (key := line.strip()))


def _flagged(reader: SplitReader, flag: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each sample has the flag, (samples,)."""
    if flag not in reader.column_names():
        raise ValueError(
            f"data.subset.exclude: {reader.dataset} does not tell {flag} of its samples"
        )
    flags = reader.column(flag)
    unknown = flags.count(None)
    if unknown:
        raise ValueError(
            f"data.subset.exclude: {flag} is unknown for {unknown} of {len(flags)} samples of "
            f"split {reader.split!r} of {reader.dataset}: ingest it with --split-lists (v1) or "
            "--metadata (v2)"
        )
    return np.array(flags, np.bool_)
