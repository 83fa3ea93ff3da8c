"""`verify` of what `fusmae.data` keeps of a dataset at a URL."""

import shutil

import pytest

from fusmae.data import open_dataset
from fusmae.manifest import all_files, read_manifest

from ..data.object_store import LoopbackStore  # noqa: TID252

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def store(made_datasets):
    with LoopbackStore(made_datasets["sen12ms"]) as store:
        yield store


@pytest.fixture
def mirror(store, tmp_path):
    """A mirror that has the first shard of the train split."""
    view = open_dataset(store.url, cache=tmp_path / "cache")
    view[0]
    view.reader.close()
    return view.reader.dataset


def test_what_a_mirror_has_is_compared_and_what_it_lacks_is_counted(mirror, store, fusmae_ingest):
    here = [file for file in all_files(read_manifest(mirror)) if (mirror / file.path).exists()]
    lacking = len(all_files(read_manifest(mirror))) - len(here)
    (shard,) = mirror.glob("shards/*/*.tar")
    # Another process fetches a shard.
    (shard.parent / "x.tar.part").write_bytes(b"")
    result = fusmae_ingest("verify", mirror)
    assert (result.returncode, result.stdout) == (
        0,
        f"{mirror}: sizes and sha256 of {len(here)} files verified; {lacking} are only at "
        f"{store.url}\n",
    )
    data = bytearray(shard.read_bytes())
    data[1000] ^= 8
    shard.write_bytes(data)
    result = fusmae_ingest("verify", mirror)
    assert result.returncode == 1 and f"{shard}: sha256" in result.stderr
    assert (
        f"1 problem, listed above; to mend it, remove the damaged files and read {store.url}"
        in (result.stderr)
    )
    shard.unlink()
    assert fusmae_ingest("verify", mirror).returncode == 0


def test_a_mirror_that_has_all_files_is_verified_as_a_dataset_is(
    mirror, made_datasets, fusmae_ingest
):
    for file in all_files(read_manifest(mirror)):
        (mirror / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made_datasets["sen12ms"] / file.path, mirror / file.path)
    result = fusmae_ingest("verify", mirror)
    assert result.returncode == 0 and "samples verified" in result.stdout, result.stderr


def test_a_copy_of_a_mirror_lacks_what_it_has_not(mirror, store, fusmae_ingest, tmp_path):
    copy = shutil.copytree(mirror, tmp_path / "copy")
    result = fusmae_ingest("verify", copy)
    assert result.returncode == 1 and ".tar: missing" in result.stderr
    assert "or copy them from there" in result.stderr and store.url in result.stderr
    assert "cached-at" not in result.stderr


def test_a_mirror_that_lacks_files_is_not_compared_with_sources(
    mirror, store, fusmae_ingest, tmp_path
):
    result = fusmae_ingest("verify", mirror, "--source", tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"of {store.url}, and only a whole dataset is compared with --source" in result.stderr


def test_an_http_url_is_refused_in_one_line(store, fusmae_ingest):
    result = fusmae_ingest("verify", store.url)
    line = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and line.startswith(f"error: {store.url}: an HTTP server does")
