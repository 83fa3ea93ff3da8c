"""Fixtures that several folders of tests share."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Of tests that were started in the background, where a shell has it ignored, every process that
# they start would ignore Ctrl-C as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_v1() -> Path:
    """A folder with six real BigEarthNet v1 pairs in the archive's own layout."""
    return _real("bigearthnet-v1")


@pytest.fixture(scope="session")
def name_lists() -> Path:
    """A folder with the published BigEarthNet name lists and tables."""
    return _real("lists")


def _real(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"needs the real sample data in {DATA / name}")
    return DATA / name


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of 2 + 3 bands and 4 blocks, random weights."""
    import torch  # here, because the tests of ingest are to run without it

    from fusmae.model import FusMAEEncoder, save_encoder

    from .model.tiny_card import TINY_CARD

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("export")
    save_encoder(FusMAEEncoder(TINY_CARD.model, TINY_CARD.channels), TINY_CARD, folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)
