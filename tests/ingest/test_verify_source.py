"""`verify --source`: the GeoTIFFs themselves, from wherever an archive keeps them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from fusmae_ingest import archives, verify_source
from fusmae_ingest.archives import Spooling
from fusmae_ingest.spool import spool
from fusmae_ingest.spool_lock import SpoolLock
from fusmae_ingest.storage import LocalStore, manifest_of
from fusmae_ingest.verify import find_problems
from fusmae_ingest.verify_samples import SourceCheck
from fusmae_ingest.verify_source import forget_sources, open_sources

from .packed_archives import pack


def no_progress(done: int, total: int) -> None:
    pass


def compare(dataset: Path, sources: list[Path], samples: int | None = None, workers: int = 1):
    """What `verify --source ...` says, without its process."""
    store = LocalStore(str(dataset))
    spooling = Spooling(Path(f"{dataset}.spool"), keep=False, check_md5=False)
    manifest = manifest_of(store)
    with spooling:
        check = SourceCheck(open_sources(sources, spooling, manifest), samples)
        told = list(find_problems(store, manifest, no_progress, workers, check))
        forget_sources(spooling)
    assert not spooling.folder.exists()
    return told


FOLDERS = {
    "v1": ("BigEarthNet-v1.0", "BigEarthNet-S1-v1.0"),
    "v2": ("BigEarthNet-S2", "BigEarthNet-S1", "Reference_Maps"),
}


@pytest.fixture(params=["v1", "v2"])
def case(request, archive_v1, archive_v2, made_datasets, tmp_path) -> tuple[Path, list[Path]]:
    """A dataset (v1 zarr only, v2 both with maps), and its archive's folders to be spoilt."""
    archive = {"v1": archive_v1, "v2": archive_v2}[request.param]
    return made_datasets[request.param], [
        shutil.copytree(archive / name, tmp_path / name) for name in FOLDERS[request.param]
    ]


def change_pixel(path: Path, band: int = 1) -> None:
    with rasterio.open(path, "r+") as file:
        pixels = file.read(band)
        pixels[3, 5] += 1
        file.write(pixels, band)


@pytest.mark.parametrize("ending", ["", ".tar", ".tar.gz"])
def test_one_changed_pixel_of_any_file_is_found_wherever_the_archive_keeps_it(
    case, ending, tmp_path
):
    dataset, folders = case
    spoilt = []
    for folder in folders:
        paths = sorted(folder.rglob("*.tif"))
        spoilt.append(paths[len(paths) // 2])
        change_pixel(spoilt[-1])
    sources = [pack(f, tmp_path / f"{f.name}{ending}") if ending else f for f in folders]
    told = compare(dataset, sources)
    assert len(told) == len(spoilt)
    for path in spoilt:
        (line,) = (line for line in told if path.name in line)
        band = "map CLC" if "reference_map" in path.name else path.stem.rpartition("_")[2]
        assert f"{band} differs in 1 of" in line
    key = spoilt[0].parent.name
    assert any(line.startswith(f"{key}: s2_") for line in told)


def test_the_undamaged_archive_compares_equal_with_any_number_of_workers(case):
    dataset, folders = case
    assert compare(dataset, folders) == []
    change_pixel(sorted(folders[0].rglob("*_B05.tif"))[4])
    alone = compare(dataset, folders)
    assert len(alone) == 1 and compare(dataset, folders[::-1], workers=2) == alone


def test_swapped_bands_are_both_named(case):
    dataset, folders = case
    one = sorted(folders[0].rglob("*_B03.tif"))[7]
    other = one.with_name(one.name.replace("_B03", "_B04"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    told = compare(dataset, folders)
    assert len(told) == 2
    assert "s2_10m B03 differs" in told[0] and one.name in told[0]
    assert "s2_10m B04 differs" in told[1] and other.name in told[1]


def test_a_moved_grid_another_zone_and_another_dtype_are_found(case):
    dataset, folders = case
    moved = sorted(folders[1].rglob("*_VH.tif"))[2]
    with rasterio.open(moved, "r+") as file:
        file.transform = file.transform @ file.transform.translation(0.25, 0)
    zone = sorted(folders[0].rglob("*_B01.tif"))[3]
    with rasterio.open(zone, "r+") as file:
        file.crs = "EPSG:32601"
    wide = sorted(folders[0].rglob("*_B8A.tif"))[5]
    with rasterio.open(wide) as file:
        pixels, profile = file.read(), file.profile
    with rasterio.open(wide, "w", **{**profile, "dtype": "uint32"}) as file:
        file.write(pixels.astype(np.uint32))
    told = compare(dataset, folders)
    assert len(told) == 3
    assert any(moved.name in line and "lies at EPSG" in line for line in told)
    assert any(zone.name in line and "lies at EPSG:32601" in line for line in told)
    assert any(wide.name in line and "holds uint32" in line for line in told)


def test_patches_that_no_source_holds_are_counted_and_one_named(case, tmp_path):
    dataset, folders = case
    patches = sorted({path.parent for path in folders[0].rglob("*_B02.tif")})
    for patch in patches[:5]:
        shutil.rmtree(patch)
    for sources in (folders, [pack(f, tmp_path / f"{f.name}.tar") for f in folders]):
        (line,) = compare(dataset, sources)
        assert line.startswith("5 of the 24 samples to compare have files that no --source holds")
        named = [patch.name for patch in patches[:5] if f"{patch.name} ({patch.name}/" in line]
        assert len(named) == 1 and len(line) < 350 and "publisher" not in line
        shutil.rmtree(f"{dataset}.spool", ignore_errors=True)
    (line,) = compare(dataset, folders[1:])
    assert line.startswith("24 of the 24 samples")


@pytest.mark.parametrize("ending", ["", ".tar.gz"])
def test_a_forgotten_archive_is_told_at_the_start(case, ending, tmp_path, capsys, monkeypatch):
    dataset, folders = case
    sources = [pack(f, tmp_path / f"{f.name}{ending}") if ending else f for f in folders]
    kinds = ("S2 patches", "S1 patches", "reference maps")[: len(sources)]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify_source, "open_archive", stop)
    for given in (sources, *(sources[:i] + sources[i + 1 :] for i in range(len(sources)))):
        with pytest.raises(KeyboardInterrupt):
            compare(dataset, given)
        missing = [kind for kind, path in zip(kinds, sources, strict=True) if path not in given]
        told = [f"warning: no --source seems to hold {kind}: give all archives" for kind in missing]
        assert [line[: len(told[0])] for line in capsys.readouterr().err.splitlines()] == told


def test_a_file_lost_in_the_archive_is_named(case):
    dataset, folders = case
    lost = sorted(folders[1].rglob("*_VV.tif"))[6]
    lost.unlink()
    (line,) = compare(dataset, folders)
    assert line.startswith("1 of the 24 samples") and f"({lost.parent.name}/{lost.name})" in line


@pytest.mark.parametrize("ending", ["", ".tar"])
def test_archives_of_the_other_version_are_refused(
    made_datasets, archive_v1, archive_v2, ending, tmp_path
):
    for version, other in (("v1", archive_v2), ("v2", archive_v1)):
        named = {"v1": "v2", "v2": "v1"}[version]
        for name in FOLDERS[named]:
            folder = other / name
            source = pack(folder, tmp_path / f"{name}{ending}") if ending else folder
            told = f"{source} holds BigEarthNet {named}, and this dataset was made from {version}"
            dataset = shutil.copytree(made_datasets[version], tmp_path / version / name)
            with pytest.raises(ValueError, match=re.escape(told)):
                compare(dataset, [source])
    with pytest.raises(ValueError, match="holds no patches of BigEarthNet"):
        compare(made_datasets["v1"], [archive_v1])


def test_what_ingest_kept_is_used_and_stays(case, monkeypatch, tmp_path):
    made, folders = case
    dataset = shutil.copytree(made, tmp_path / "copy")
    # A compressed archive that ingest unpacked, and a tar that it indexed.
    packed = pack(folders[0], tmp_path / "mine.tar.gz"), pack(folders[1], tmp_path / "mine.tar")
    spooling = Spooling(Path(f"{dataset}.spool"), keep=False, check_md5=False)
    for archive, option in zip(packed, ("--s2", "--s1"), strict=True):
        with SpoolLock(spooling.of(option)) as lock:
            spool(archive, lock, no_progress, check_md5=False)
    before = sorted(spooling.folder.rglob("*"))
    assert any(path.suffix == ".tar" for path in before)
    monkeypatch.setattr(archives, "spool", None)
    manifest = manifest_of(LocalStore(str(dataset)))
    # In another order than ingest's.
    sources = [packed[1], packed[0], *folders[2:]]
    with spooling:
        check = SourceCheck(open_sources(sources, spooling, manifest))
        assert list(find_problems(LocalStore(str(dataset)), manifest, no_progress, 1, check)) == []
        forget_sources(spooling)
    assert sorted(spooling.folder.rglob("*")) == before
    packed[1].touch()
    with spooling, pytest.raises(TypeError):
        open_sources(sources, spooling, manifest)


@pytest.mark.parametrize("case", ["v1"], indirect=True)
def test_what_a_stopped_verify_left_is_used_in_any_order_and_goes(case, tmp_path):
    dataset, folders = case
    dataset = shutil.copytree(dataset, tmp_path / "copy")
    s2, s1 = (pack(f, tmp_path / f"{f.name}.tar.gz") for f in folders)
    spooling = Spooling(Path(f"{dataset}.spool"), keep=False, check_md5=False)
    with pytest.raises(KeyboardInterrupt), spooling:
        open_sources([s2, s1], spooling, manifest_of(LocalStore(str(dataset))))
        raise KeyboardInterrupt
    left = sorted(spooling.folder.rglob("archive.tar"))
    assert len(left) == 2
    # The first of these is where the second of the stopped run was.
    again = shutil.copy(s2, tmp_path / "s2-again.tar.gz")
    assert compare(dataset, [s1, again]) == []
    with pytest.raises(KeyboardInterrupt), spooling:
        open_sources([s2, s1], spooling, manifest_of(LocalStore(str(dataset))))
        raise KeyboardInterrupt
    # What is not used goes too.
    assert compare(dataset, [folders[0], pack(folders[1], tmp_path / "s1.tar")]) == []


@pytest.mark.parametrize("case", ["v1"], indirect=True)
def test_sources_and_spools_that_cannot_be_are_one_line(case, fusmae_ingest, tmp_path):
    dataset, folders = case
    dataset = shutil.copytree(dataset, tmp_path / "copy")
    s2 = pack(folders[0], tmp_path / "s2.tar.gz")
    (tmp_path / "link.tar.gz").symlink_to(s2)
    short = tmp_path / "short.tar.zst"
    short.write_bytes(b"\x28\xb5\x2f\xfd\x04\x00")
    for args, told in {
        (s2, "--source", s2): f"--source {s2} is given twice",
        (s2, "--source", tmp_path / "link.tar.gz"): f"and --source {s2} are the same",
        (s2, "--spool", dataset / "spool"): f"--spool {dataset}/spool lies in the dataset",
        (short,): "short.tar.zst is cut short",
        (dataset / "samples.parquet",): "samples.parquet is a parquet file: give a folder, a .tar",
    }.items():
        result = fusmae_ingest("verify", dataset, "--source", *args)
        assert result.returncode == 1 and told in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (dataset / "spool").exists() and not Path(f"{dataset}.spool").exists()


def test_an_archive_cut_into_several_is_looked_through(case, tmp_path):
    dataset, folders = case
    half = tmp_path / "half" / folders[0].name
    for path in sorted(folders[0].iterdir())[::2]:
        (half / path.name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(half / path.name)
    assert compare(dataset, [*folders, half]) == []


def test_an_evenly_spaced_subset_is_compared(case):
    dataset, folders = case
    for path in folders[0].rglob("*_B11.tif"):
        change_pixel(path)
    assert len(compare(dataset, folders)) == 21
    assert len(compare(dataset, folders, samples=5)) == 5
    assert SourceCheck((), 5).places(24).tolist() == [0, 4, 9, 14, 19]
    assert SourceCheck((), 50).places(3).tolist() == [0, 1, 2]


@pytest.fixture(params=["lc", "no-lc"])
def triplets(request, made_datasets, fusmae_ingest, tmp_path) -> tuple[Path, Path]:
    """A SEN12MS dataset with and without land cover, and its root."""
    root = shutil.copytree(made_datasets["sen12ms"].parent / "triplets", tmp_path / "root")
    if request.param == "lc":
        return made_datasets["sen12ms"], root
    out = tmp_path / "sen12ms"
    result = fusmae_ingest("sen12ms", "--root", root, "--no-lc", "--out", out)
    assert result.returncode == 0, result.stderr
    return out, root


def test_sen12ms_is_compared_with_its_root(triplets):
    dataset, root = triplets
    assert compare(dataset, [root]) == []
    with_lc = len(manifest_of(LocalStore(str(dataset))).arrays) == 3
    spoilt = {kind: sorted(root.glob(f"*/{kind}_*/*.tif"))[3] for kind in ("s1", "s2", "lc")}
    for path in spoilt.values():
        change_pixel(path, 2)
    told = compare(dataset, [root])
    assert len(told) == 2 + with_lc
    assert any("s2 B02 differs in 1 of 65,536 pixels" in line for line in told)
    assert any(spoilt["s1"].name in line and "s1 VH differs" in line for line in told)
    assert any(spoilt["lc"].name in line for line in told) == with_lc
    with pytest.raises(ValueError, match="is a file: of SEN12MS give the folder of seasons"):
        compare(dataset, [spoilt["s1"]])


@pytest.mark.parametrize("case", ["v2"], indirect=True)
def test_the_command_compares_and_fails(case, fusmae_ingest, tmp_path):
    dataset, folders = case
    sources = [arg for folder in folders for arg in ("--source", folder)]
    result = fusmae_ingest("verify", dataset, *sources, "--workers", 2)
    assert result.returncode == 0 and "24 compared with their sources" in result.stdout
    change_pixel(sorted(folders[1].rglob("*_VV.tif"))[0])
    result = fusmae_ingest("verify", dataset, *sources)
    assert result.returncode == 1 and "s1 VV differs in 1 of 14,400 pixels" in result.stderr
    result = fusmae_ingest("verify", dataset, "--source", tmp_path / "absent")
    assert result.returncode == 1 and f"{tmp_path / 'absent'} does not exist" in result.stderr
    result = fusmae_ingest("verify", dataset, "--samples", 3)
    assert result.returncode == 2 and "--samples belongs to --source" in result.stderr


@pytest.mark.parametrize("case", ["v1"], indirect=True)
def test_a_damaged_dataset_says_that_nothing_was_compared(case, tmp_path):
    dataset, folders = case
    copy = shutil.copytree(dataset, tmp_path / "copy")
    (copy / "README.md").write_text("x")
    told = compare(copy, folders)
    assert len(told) == 2 and "nothing was compared with --source" in told[1]


def test_real_pairs_compare_equal(real_v1, fusmae_ingest, tmp_path):
    folders = [real_v1 / name for name in FOLDERS["v1"]]
    args = ("--s2", folders[0], "--s1", folders[1], "--out", tmp_path / "d")
    assert fusmae_ingest("bigearthnet", *args).returncode == 0
    assert compare(tmp_path / "d", folders) == []
