"""Columns of `samples.parquet`, a row a sample: the only pyarrow import of `fusmae`."""

from pathlib import Path
from typing import Any

from fusmae.data.remote import SAMPLES_NAME
from fusmae.manifest import REPAIR

_NO_PYARROW = f"reading {SAMPLES_NAME} needs pyarrow: pip install pyarrow"


def has_pyarrow() -> bool:
    """Whether the table can be read."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


def _table_of(dataset: Path) -> Path:
    path = dataset / SAMPLES_NAME
    if not path.exists():
        raise ValueError(
            f"there is no {path}, in which keys, labels and flags are looked up: {REPAIR}"
        )
    return path


def column_names(dataset: Path) -> list[str]:
    """The names of the columns.

    Raises:
        ValueError: pyarrow is not installed, or the table is missing or broken.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_schema
    except ImportError:
        raise ValueError(_NO_PYARROW) from None
    path = _table_of(dataset)
    try:
        return list(read_schema(path).names)
    except (OSError, ArrowException) as error:
        raise ValueError(f"cannot read {path}: {error}: {REPAIR}") from None


def read_column(dataset: Path, split: str, num_samples: int, name: str) -> list[Any]:
    """A column's values for the samples of a split, in the order of their ids.

    Raises:
        ValueError: pyarrow is not installed, or the table is missing, broken, without this
            column or not of `num_samples` rows for the split.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError:
        raise ValueError(_NO_PYARROW) from None
    path = _table_of(dataset)
    try:
        table = read_table(path, columns=[name], filters=[("split", "==", split)])
    except (OSError, ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"cannot read column {name!r} of {path}: {reason}") from None
    if table.num_rows != num_samples:
        raise ValueError(
            f"{path} has {table.num_rows} rows for split {split!r}, its manifest says "
            f"{num_samples}: {REPAIR}"
        )
    return table.column(name).to_pylist()
