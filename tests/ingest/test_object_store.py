"""A dataset in a real S3 API on the loopback (moto's server): the same bytes as on disk."""

import os
import subprocess
import sys
import time
import tracemalloc

import pytest
from moto.s3.responses import S3Response

from fusmae_ingest import object_store
from fusmae_ingest.archives import spool_folder
from fusmae_ingest.storage import LocalStore, open_store

from .s3_server import objects, serving
from .trees import tree

OPTIONS = ("--format", "shards", "--format", "zarr", "--samples-per-shard", "4")


@pytest.fixture(scope="module")
def s3():
    with serving() as client:
        yield client


@pytest.fixture(scope="module")
def on_disk(archive_v1, fusmae_ingest, paths, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("disk") / "d"
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", out, *OPTIONS)
    assert result.returncode == 0, result.stderr
    return tree(out)


def test_a_dataset_in_s3_is_the_one_on_disk_byte_for_byte_and_verifies(
    s3, on_disk, archive_v1, fusmae_ingest, paths
):
    url = "s3://datasets/whole"
    args = ("bigearthnet", *paths(archive_v1), "--out", url, *OPTIONS, "--workers", 2)
    result = fusmae_ingest(*args)
    assert result.returncode == 0, result.stderr
    assert objects(s3, "whole") == on_disk
    for workers in (1, 2):
        verified = fusmae_ingest("verify", url, "--workers", workers)
        assert verified.returncode == 0, verified.stderr
    assert "bigearthnet-v1" in fusmae_ingest("info", url).stdout
    assert "already complete" in fusmae_ingest(*args).stdout
    other = fusmae_ingest(*args, "--seed", 1)
    assert other.returncode == 1 and "--seed: 0 then, 1 now" in other.stderr


def test_a_file_is_held_in_memory_once(monkeypatch):
    store, part, seen = open_store("s3://datasets/d"), bytes(1 << 20), []

    def put(path: str, data: bytes) -> None:
        seen.append((len(data), tracemalloc.get_traced_memory()[1]))

    monkeypatch.setattr(store, "put", put)
    tracemalloc.start()
    with store.create("file") as file:
        for _ in range(64):
            file.write(part)
    tracemalloc.stop()
    ((size, peak),) = seen
    # Besides, what the buffer grows ahead.
    assert size == 64 << 20 and peak < 1.3 * size


def test_verify_names_an_object_that_was_changed(s3, on_disk, fusmae_ingest):
    for path, data in on_disk.items():
        s3.put_object(Bucket="datasets", Key=f"spoilt/{path}", Body=data)
    shard = next(path for path in on_disk if path.endswith(".tar"))
    spoilt = bytearray(on_disk[shard])
    spoilt[len(spoilt) // 2] ^= 1
    s3.put_object(Bucket="datasets", Key=f"spoilt/{shard}", Body=bytes(spoilt))
    for workers in (1, 2):
        result = fusmae_ingest("verify", "s3://datasets/spoilt", "--workers", workers)
        assert result.returncode == 1
        assert f"s3://datasets/spoilt/{shard}: sha256" in result.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_finished_dataset_lost_is_made_again(
    s3, on_disk, archive_v1, fusmae_ingest, paths, workers
):
    shard = next(path for path in on_disk if path.endswith(".tar"))
    array = next(path for path in on_disk if path.startswith("zarr/test.zarr/s1/c/"))
    args = ("bigearthnet", *paths(archive_v1), "--out", "s3://datasets/lost", *OPTIONS)
    for lost in ((shard, array), ("samples.parquet",), ("dataset.json",)):
        for path, data in on_disk.items():
            s3.put_object(Bucket="datasets", Key=f"lost/{path}", Body=data)
        for path in lost:
            s3.delete_object(Bucket="datasets", Key=f"lost/{path}")
        result = fusmae_ingest(*args, "--workers", workers)
        assert result.returncode == 0, result.stderr
        assert lost[0] in result.stderr and "made again" in result.stderr
        assert objects(s3, "lost") == on_disk


def test_a_killed_run_is_completed_by_the_next(s3, on_disk, archive_v1, fusmae_ingest, paths):
    url = "s3://datasets/killed"
    # As the command, but it does not wait half a minute for the dead run's lock.
    code = "from fusmae_ingest import cli, object_lock as o; o.LOCK_RENEWAL_S = 0.5; cli.main()"
    args = ("bigearthnet", *map(str, paths(archive_v1)), "--out", url, *OPTIONS)
    command = [sys.executable, "-c", code, *args]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not [k for k in objects(s3, "killed") if ".ingest/blocks/" in k]:
        assert time.monotonic() < deadline and process.poll() is None
    process.kill()
    process.wait()
    assert "dataset.json" not in objects(s3, "killed")
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "is locked" in result.stderr
    assert objects(s3, "killed") == on_disk


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "s3://no-such-bucket/d",
            "error: s3://no-such-bucket/d/: there is no bucket no-such-bucket: create it first\n",
        ),
        (
            "s4://bucket/d",
            "error: s4://bucket/d: nothing is known of s4://: give a folder, or a URL",
        ),
        ("simplecache::s4://bucket/d", "nothing is known of simplecache::s4://"),
        ("memory://d", "error: memory://d: memory:// is gone when the command ends"),
        ("s3://", "'s3://' names no place"),
        ("file://", "'file://' names no place"),
        ("ftp://me:hush@host/d", "error: ftp://host: the URL holds a password"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    s3, url, told, archive_v1, fusmae_ingest, paths
):
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", url, *OPTIONS)
    assert result.returncode == 1 and told in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1 and "hush" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("given", "reason"),
    [({}, "Unable to locate credentials"), ({"AWS_PROFILE": "nobody"}, "profile (nobody)")],
)
def test_without_credentials_the_variables_to_set_are_named(
    s3, archive_v1, paths, tmp_path, given, reason
):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | given
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    environment["AWS_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    ingest = ["bigearthnet", *map(str, paths(archive_v1)), "--out", "s3://datasets/denied"]
    for args in (ingest, ["info", "s3://datasets/denied"]):
        command = [sys.executable, "-m", "fusmae_ingest.cli", *args]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: s3://datasets/denied") and reason in line
        assert "set AWS_PROFILE, or AWS_ACCESS_KEY_ID" in line and "again" not in line


@pytest.mark.parametrize("url", ["s3://datasets/down", "http://127.0.0.1:9/down"])
def test_a_store_out_of_reach_is_told_in_one_line(fusmae_ingest_process, monkeypatch, url):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    result = fusmae_ingest_process("info", url)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {url}/dataset.json: no answer from the store: see that ")
    assert line.endswith("; run the same command again to go on")
    assert ("(AWS_ENDPOINT_URL)" in line) == url.startswith("s3://")


@pytest.mark.parametrize(
    "endpoint",
    ["nonsense", "host:9000", "http://", "http://[bad", "http://a b", "ftp://h", "http://h:99999"],
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_that_is_no_address_is_told_in_one_line(
    fusmae_ingest, monkeypatch, name, endpoint
):
    monkeypatch.setenv(name, endpoint)
    result = fusmae_ingest("info", "s3://bucket/d")
    assert result.returncode == 1
    assert result.stderr == (
        f"error: {name}={endpoint} is no address of an object store: set it to one such as "
        "http://host:9000, or unset it\n"
    )


def test_a_place_without_a_dataset_is_told_as_one(s3, fusmae_ingest):
    result = fusmae_ingest("info", "s3://datasets/nothing")
    assert result.returncode == 1
    assert "nothing/dataset.json: No such file or directory; is s3://datasets/" in result.stderr


def test_a_file_url_is_the_path_in_it(on_disk, archive_v1, fusmae_ingest, paths, tmp_path):
    out, url = tmp_path / "d", f"file://{tmp_path}/d"
    result = fusmae_ingest("bigearthnet", *paths(archive_v1), "--out", url, *OPTIONS)
    assert result.returncode == 0, result.stderr
    assert tree(out) == on_disk
    local = open_store(f"local://{out}")
    assert isinstance(local, LocalStore) and sorted(local.sizes()) == sorted(on_disk)
    assert spool_folder(url, None) == spool_folder(str(out), None) == tmp_path / "d.spool"


def test_a_store_sees_at_once_what_others_write(s3):
    store = open_store("s3://datasets/shared")
    assert store.sizes() == {} and not store.exists("a/b")
    for data in (b"one", b"three"):
        s3.put_object(Bucket="datasets", Key="shared/a/b", Body=data)
        assert store.sizes() == {"a/b": len(data)} and store.exists("a/b")
        assert store.read("a/b") == data and store.hash("a/b")[0] == len(data)
    s3.delete_object(Bucket="datasets", Key="shared/a/b")
    assert store.sizes() == {} and not store.exists("a/b")
    with pytest.raises(FileNotFoundError):
        store.read("a/b")


def test_a_folder_made_in_a_web_console_is_an_empty_one(s3):
    s3.put_object(Bucket="datasets", Key="console/", Body=b"")
    store = open_store("s3://datasets/console/")
    assert store.sizes() == {} and not store.holds_other_files()


def test_a_run_that_begins_while_its_place_is_listed_is_no_other_file(s3, monkeypatch):
    """s3fs lists, and where nothing was, looks whether the place is a folder by now."""
    store = open_store("s3://datasets/begun")
    fs = store._place[0]
    listing = fs._lsdir

    async def slow(*args, **kwargs):
        found = await listing(*args, **kwargs)
        s3.put_object(Bucket="datasets", Key="begun/.ingest/lock", Body=b"other 0\n")
        return found

    monkeypatch.setattr(fs, "_lsdir", slow)
    assert not store.holds_other_files()
    assert store.sizes() == {".ingest/lock": 8}


def test_a_store_that_does_not_answer_is_not_an_empty_one(s3, monkeypatch):
    store = open_store("s3://datasets/silent")

    class Silent:
        def invalidate_cache(self):
            pass

        def info(self, path):
            raise RuntimeError

    monkeypatch.setattr(object_store.ObjectStore, "_place", (Silent(), "datasets/silent"))
    with pytest.raises(OSError, match="RuntimeError") as told:
        store.exists("dataset.json")
    assert told.value.filename == "s3://datasets/silent/dataset.json"


def test_large_objects_are_whole_or_absent(s3, monkeypatch):
    """s3fs uploads from 100 MB in parts; the second part's failure leaves nothing behind."""
    store = open_store("s3://datasets/large")
    fs = store._place[0]
    data = bytes(101 << 20)
    store.put("whole", data)
    assert store.sizes() == {"whole": len(data)} and store.hash("whole")[0] == len(data)
    call = fs._call_s3

    async def failing(method, *args, **kwargs):
        if method == "upload_part" and kwargs["PartNumber"] == 2:
            raise PermissionError("Access Denied")
        return await call(method, *args, **kwargs)

    monkeypatch.setattr(fs, "_call_s3", failing)
    with pytest.raises(PermissionError) as told, store.create("part") as file:
        file.write(data)
    assert told.value.filename == "s3://datasets/large/part"
    assert store.sizes() == {"whole": len(data)}
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="datasets")


def test_a_put_that_the_store_fails_in_passing_is_repeated(s3, monkeypatch):
    answer, count = S3Response.put_object, [0]

    def busy(self):
        count[0] += 1
        if count[0] < 3:
            return 500, {}, "<Error><Code>InternalError</Code></Error>"
        return answer(self)

    monkeypatch.setattr(S3Response, "put_object", busy)
    open_store("s3://datasets/busy").put("a", b"data")
    assert objects(s3, "busy") == {"a": b"data"} and count[0] == 3
