"""Small simulated archives, made once a session, and ways to call the command line."""

import contextlib
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from fusmae_ingest import cli

from .packed_archives import Told, pack
from .spools import COMPRESSED
from .trees import tree

Run = Callable[..., subprocess.CompletedProcess[str]]

LISTS = ("train", "val", "test", "patches_with_seasonal_snow", "patches_with_cloud_and_shadow")
BOTH = ("--format", "shards", "--format", "zarr")
OPTIONS = (*BOTH, "--samples-per-shard", "2")


@pytest.fixture(scope="session")
def fusmae_ingest() -> Run:
    """Runs `fusmae-ingest ARGS` in this process, where nothing has to be imported again."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        command = ["fusmae-ingest", *map(str, args)]
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            patch.setattr(sys, "argv", command)
            # As in a process of its own: what a user would see is in stderr.
            patch.setattr(warnings, "showwarning", _show_warning)
            warnings.simplefilter("always")
            for category in (DeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)
            try:
                cli.main()
                code = 0
            except SystemExit as exit_:
                assert isinstance(exit_.code, int)
                code = exit_.code
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())

    return run


def _show_warning(message: object, category: type[Warning], *_: object) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)


@pytest.fixture
def ingest(monkeypatch, capsys) -> Callable[..., Told]:
    """Runs `fusmae-ingest ARGS` here: what is refused early is refused in no time."""

    def run(*args: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["fusmae-ingest", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Told(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def fusmae_ingest_process() -> Run:
    """Runs `fusmae-ingest ARGS` in a process of its own, as a user does."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fusmae_ingest.cli", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="session")
def archive_v1(tmp_path_factory: pytest.TempPathFactory, fusmae_ingest: Run) -> Path:
    """A simulated v1 archive of 24 pairs. Tests that spoil it copy it first."""
    return _simulate(tmp_path_factory.mktemp("v1") / "archive", "v1", fusmae_ingest)


@pytest.fixture(scope="session")
def archive_v2(tmp_path_factory: pytest.TempPathFactory, fusmae_ingest: Run) -> Path:
    """A simulated v2 archive of 24 pairs with metadata tables and reference maps."""
    return _simulate(tmp_path_factory.mktemp("v2") / "archive", "v2", fusmae_ingest)


def _simulate(out: Path, version: str, run: Run) -> Path:
    args = ("--out", out, "--patches", 24, "--seed", 1, "--version", version)
    result = run("simulate", "bigearthnet", *args)
    assert result.returncode == 0, result.stderr
    return out


def folders(archive: Path) -> tuple[str, Path, str, Path]:
    """The `--s2 X --s1 Y` arguments of an archive of either version."""
    s2 = next(archive.glob("BigEarthNet-v1.0"), archive / "BigEarthNet-S2")
    s1 = next(archive.glob("BigEarthNet-S1-v1.0"), archive / "BigEarthNet-S1")
    return ("--s2", s2, "--s1", s1)


@pytest.fixture(scope="session")
def paths() -> Callable[[Path], tuple[str, Path, str, Path]]:
    """See `folders`."""
    return folders


@pytest.fixture(scope="session")
def packed(archive_v1, archive_v2, tmp_path_factory) -> dict[str, Path]:
    """Compressed archives `v1-s2` to `v2-maps`."""
    root = tmp_path_factory.mktemp("packed")
    sources = {
        "v1-s2": archive_v1 / "BigEarthNet-v1.0",
        "v1-s1": archive_v1 / "BigEarthNet-S1-v1.0",
        "v2-s2": archive_v2 / "BigEarthNet-S2",
        "v2-s1": archive_v2 / "BigEarthNet-S1",
        "v2-maps": archive_v2 / "Reference_Maps",
    }
    return {
        name: pack(folder, root / f"{name}.tar.{'zst' if 'v2' in name else 'gz'}")
        for name, folder in sources.items()
    }


@pytest.fixture(scope="session")
def packed_v1(packed) -> tuple[object, ...]:
    """The `--s2 X.tar.gz --s1 Y.tar.gz` arguments of `archive_v1`."""
    return ("--s2", packed["v1-s2"], "--s1", packed["v1-s1"])


@pytest.fixture(scope="session")
def whole(archive_v1, fusmae_ingest, paths, tmp_path_factory) -> dict[str, bytes]:
    """What an undisturbed run with `OPTIONS` makes of `archive_v1`."""
    out = tmp_path_factory.mktemp("whole") / "d"
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    return tree(out)


@pytest.fixture(scope="session")
def tables(archive_v2) -> list[Path]:
    return sorted(archive_v2.glob("*.parquet"))


@pytest.fixture
def lists(tmp_path) -> Path:
    folder = tmp_path / "lists"
    folder.mkdir()
    for name in LISTS:
        (folder / f"{name}.csv").write_text("")
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The small archive of `spools`."""
    path = tmp_path / "mine.tar.gz"
    path.write_bytes(COMPRESSED["one gzip member"])
    return path


@pytest.fixture(scope="session")
def made_datasets(
    tmp_path_factory: pytest.TempPathFactory, fusmae_ingest: Run, archive_v1: Path, archive_v2: Path
) -> dict[str, Path]:
    """A small dataset of each kind: `v1` zarr only, `v2` both with maps, `sen12ms` shards only."""
    root = tmp_path_factory.mktemp("made")
    triplets = root / "triplets"
    result = fusmae_ingest("simulate", "sen12ms", "--out", triplets, "--patches", 12, "--seed", 3)
    assert result.returncode == 0, result.stderr
    tables = [arg for path in archive_v2.glob("*.parquet") for arg in ("--metadata", path)]
    maps = ("--maps", archive_v2 / "Reference_Maps")
    for name, args in {
        "v1": ("bigearthnet", *folders(archive_v1), "--format", "zarr"),
        "v2": ("bigearthnet", *folders(archive_v2), *tables, *maps, *BOTH),
        "sen12ms": ("sen12ms", "--root", triplets),
    }.items():
        result = fusmae_ingest(*args, "--out", root / name, "--samples-per-shard", 4)
        assert result.returncode == 0, result.stderr
    return {name: root / name for name in ("v1", "v2", "sen12ms")}


@pytest.fixture(scope="session")
def shards_v1(archive_v1, fusmae_ingest, paths, tmp_path_factory) -> Path:
    """A dataset of `archive_v1`: shards alone, four samples each."""
    out = tmp_path_factory.mktemp("shards") / "dataset"
    args = ("bigearthnet", *paths(archive_v1), "--out", out, "--samples-per-shard", 4)
    assert fusmae_ingest(*args).returncode == 0
    return out


@pytest.fixture
def without_charts(monkeypatch) -> None:
    """Where a test looks at samples and words alone: drawing charts takes most of a page's time."""
    for module in ("preview_charts", "preview_histograms"):
        monkeypatch.setattr(f"fusmae_ingest.{module}.figure_png", lambda figure: b"")
