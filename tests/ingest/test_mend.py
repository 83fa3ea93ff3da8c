"""What a finished dataset has lost is made again by the command that made it, byte for byte."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio

from .trees import tree

OPTIONS = ("--format", "shards", "--format", "zarr", "--samples-per-shard", "4")


@pytest.fixture(scope="module")
def whole(archive_v1, fusmae_ingest, paths, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "d"
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "d")


@pytest.fixture
def again(archive_v1, fusmae_ingest, paths, out) -> Callable[..., object]:
    """Gives the same command again."""

    def run(*extra: object, archive: Path = archive_v1):
        return fusmae_ingest("bigearthnet", *paths(archive), "--out", out, *OPTIONS, *extra)

    return run


@pytest.mark.parametrize("workers", [1, 2])
def test_a_lost_shard_and_a_cut_zarr_object_are_made_again_and_no_other_block(
    whole, out, again, fusmae_ingest, workers
):
    shard, other = sorted(out.glob("shards/train/*.tar"))[:2]
    shard.unlink()
    array = next(out.glob("zarr/test.zarr/s1/c/0/0/0/0"))
    os.truncate(array, 100)
    before = other.stat().st_mtime_ns, (out / "dataset.json").stat().st_mtime_ns
    result = again("--workers", workers)
    assert result.returncode == 0, result.stderr
    lost = f"{shard.relative_to(out)} and 1 more"
    assert f"{out}: missing or of a wrong size, so made again: {lost}" in result.stderr
    assert f"{out}: mended, 24 samples" in result.stdout
    assert tree(out) == tree(whole)
    assert (other.stat().st_mtime_ns, (out / "dataset.json").stat().st_mtime_ns) == before
    assert fusmae_ingest("verify", out).returncode == 0


def test_a_bad_source_of_a_lost_shard_is_no_reason_to_leave_a_sample_out(
    archive_v1, out, again, tmp_path
):
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    for band in archive.glob("BigEarthNet-v1.0/*/*_B05.tif"):
        band.unlink()
    min(out.glob("shards/train/*.tar")).unlink()
    result = again(archive=archive)
    assert result.returncode == 1 and "B05.tif is missing" in result.stderr
    assert "quarantine" not in result.stderr


def test_a_shard_of_other_bytes_than_the_manifests_is_refused(
    archive_v1, out, again, tmp_path, paths
):
    """One pixel of the archive is another now."""
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    for path in archive.glob("BigEarthNet-v1.0/*/*_B02.tif"):
        with rasterio.open(path, "r+") as file:
            pixels = file.read()
            pixels[0, 0, 0] ^= 1
            file.write(pixels)
    shard = sorted(out.glob("shards/train/*.tar"))[0]
    shard.unlink()
    before = tree(out)
    result = again(archive=archive)
    assert result.returncode == 1 and f"{shard} would have the sha256 " in result.stderr
    assert "so nothing was replaced: give the archives that the dataset was" in result.stderr
    assert {p: d for p, d in tree(out).items() if not p.startswith(".ingest/")} == before
    assert again().returncode == 0
    assert before.items() < tree(out).items() and shard.exists()


@pytest.mark.parametrize(
    "lost", ["dataset.json", "samples.parquet", "index/train.npy", "zarr/train.zarr/zarr.json"]
)
def test_a_lost_file_of_the_whole_dataset_is_made_again(whole, out, again, lost):
    (out / lost).unlink()
    result = again()
    assert result.returncode == 0, result.stderr
    assert tree(out) == tree(whole)
    assert lost in result.stderr and "made again" in result.stderr


def half(text: bytes) -> bytes:
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (half, "is not valid JSON"),
        (lambda text: b"", "is not valid JSON"),
        (lambda text: b"\xff" + text, "is not valid JSON"),
        (lambda text: text.replace(b'"seed"', b'"sead"'), "has a broken or missing field"),
        (lambda text: text.replace(b'"plan"', b'"plam"'), "was changed (its sha256 is "),
    ],
)
def test_a_damaged_manifest_is_one_line_that_says_what_to_do_and_that_mends_it(
    whole, out, again, fusmae_ingest, damage, told
):
    path = out / "dataset.json"
    path.write_bytes(damage(path.read_bytes()))
    verbs = [("verify", out), ("info", out), ("preview", out)]
    for result in [again(), *(fusmae_ingest(*verb) for verb in verbs)]:
        *_, line = result.stderr.splitlines()
        assert result.returncode == 1 and line.startswith(f"error: {path} {told}")
        assert "or remove it and give the command again that made the dataset" in line
    path.unlink()
    assert again().returncode == 0
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("own", ["zarr/mine.zarr/zarr.json", "shards/train/notes.txt"])
def test_a_file_of_the_users_own_is_never_removed(out, again, own):
    (out / own).parent.mkdir(exist_ok=True)
    (out / own).write_text("mine")
    (out / "README.md").unlink()
    before = tree(out)
    result = again()
    assert result.returncode == 1
    assert f"{own} is none of the dataset's files, and README.md is missing" in result.stderr
    assert {p: d for p, d in tree(out).items() if not p.startswith(".ingest/")} == before
    (out / "dataset.json").unlink()
    assert again().returncode == 0
    assert (out / own).read_text() == "mine"


def test_an_edited_card_is_not_replaced(out, again):
    (out / "README.md").write_text("A card that somebody wrote.")
    result = again()
    assert result.returncode == 1 and "README.md has 27 bytes, dataset.json says" in result.stderr
    assert (out / "README.md").read_text() == "A card that somebody wrote."


def test_all_blocks_made_again_from_other_pixels_replace_nothing(
    archive_v1, fusmae_ingest, paths, out, tmp_path
):
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    image = next((archive / "BigEarthNet-v1.0").rglob("*_B02.tif"))
    with rasterio.open(image, "r+") as file:
        pixels = file.read()
        pixels[0, 0, 0] += 1
        file.write(pixels)
    (out / "README.md").unlink()
    before = tree(out)
    args = ("bigearthnet", *paths(archive), "--out", out, *OPTIONS)
    result = fusmae_ingest(*args, "--on-error", "quarantine", "--max-bad", 0.5)
    assert result.returncode == 1 and "so nothing was replaced" in result.stderr
    assert {p: d for p, d in tree(out).items() if not p.startswith(".ingest/")} == before


def test_a_mend_that_was_killed_is_not_gone_on_with_as_another_dataset(out, again):
    (out / "README.md").unlink()
    (out / "shards" / "train" / "mine").write_text("")  # ends the mend after its plan is noted
    assert again().returncode == 1
    (out / "dataset.json").unlink()
    before = tree(out)
    result = again("--seed", 5)
    assert result.returncode == 1 and "--seed: 0 then, 5 now" in result.stderr
    assert tree(out) == before


def test_a_dataset_that_left_out_bad_samples_is_mended(archive_v1, fusmae_ingest, paths, tmp_path):
    archive = shutil.copytree(archive_v1, tmp_path / "archive")
    patches = sorted((archive / "BigEarthNet-v1.0").glob("S[12]*"))
    for patch in patches[3:9:2]:
        (patch / f"{patch.name}_B05.tif").unlink()
    args = ("bigearthnet", *paths(archive), "--out", tmp_path / "d", *OPTIONS)
    tolerant = ("--on-error", "quarantine", "--max-bad", 0.5)
    assert fusmae_ingest(*args, *tolerant).returncode == 0
    before = tree(tmp_path / "d")
    for lost in ("shards/train/*-000000.tar", "shards/val/*.tar", "quarantine.jsonl"):
        for path in (tmp_path / "d").glob(lost):
            path.unlink()
        assert fusmae_ingest(*args).returncode == 1
        result = fusmae_ingest(*args, *tolerant)
        assert result.returncode == 0, result.stderr
        assert tree(tmp_path / "d") == before
    (tmp_path / "d" / "dataset.json").unlink()
    assert fusmae_ingest(*args, *tolerant).returncode == 0
    assert tree(tmp_path / "d") == before


def test_another_dataset_that_lost_its_manifest_is_refused_and_stays(out, again):
    (out / "dataset.json").unlink()
    before = tree(out)
    for extra, told in (
        (("--seed", 5), "or in another order"),
        (("--samples-per-shard", 2), "or in another order"),
        (("--limit", 20), "make one of other samples"),
    ):
        result = again(*extra)
        assert result.returncode == 1 and told in result.stderr, result.stderr
        assert f"--out {out} has lost its dataset.json, and " in result.stderr
        assert tree(out) == before


def test_a_format_that_is_not_asked_for_is_not_swept_away(archive_v1, fusmae_ingest, paths, out):
    (out / "dataset.json").unlink()
    before = tree(out)
    args = ("--out", out, "--samples-per-shard", 4)
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), *args)
    assert result.returncode == 1 and "it has shards, zarr (--format)" in result.stderr
    assert tree(out) == before


def test_verify_says_how_to_mend(whole, out, again, fusmae_ingest):
    shard = next(out.glob("shards/val/*.tar"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = fusmae_ingest("verify", out)
    assert result.returncode == 1 and f"{shard}: sha256" in result.stderr
    assert "has 1 problem, listed above; to mend it, remove the damaged files and" in result.stderr
    shard.unlink()
    assert "to mend it, " in fusmae_ingest("verify", out).stderr
    assert again().returncode == 0
    assert tree(out) == tree(whole)
    (out / "extra").write_text("x")
    assert "to mend it" not in fusmae_ingest("verify", out).stderr
