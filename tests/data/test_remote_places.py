"""The places a dataset is read from: what their manifests may say, and their protocols."""

import json
import os
import ssl
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
import torch

from fusmae.config import DataConfig
from fusmae.data import EvalLoader, TrainLoader, locate_dataset, open_dataset
from fusmae.manifest import read_manifest

from ..manifests import sealed  # noqa: TID252
from .object_store import LoopbackStore
from .remote_batches import DATA, SEED, URL, digests, shard_gets, train_shards

pytestmark = pytest.mark.timeout(90)


def test_a_url_is_opened_with_a_cache_and_paths_may_be_text(s3_store, big_window_dataset, tmp_path):
    view = open_dataset(URL, cache=str(tmp_path))
    assert torch.equal(view[70]["s1"], open_dataset(big_window_dataset)[70]["s1"])
    mirror = locate_dataset(URL, str(tmp_path))
    assert view.reader.dataset == mirror
    with TrainLoader(str(mirror), DATA, 1, 8, 0, 1, 8) as loader:
        assert len(next(loader)) == 8
    assert len(next(iter(EvalLoader(str(mirror), "val", DATA, 4)))) == 4
    with pytest.raises(ValueError, match=r"say where .* open_dataset\(URL, cache=FOLDER\)"):
        open_dataset(URL)
    with pytest.raises(ValueError, match=r"is a URL .* give locate_dataset\(URL, CACHE\) instead"):
        TrainLoader(URL, DATA, 1, 8, 0, 1, 8)


def test_changed_dataset_is_mirrored_beside_the_old_one(s3_store, tmp_path):
    old = locate_dataset(URL, tmp_path)
    text = (old / "dataset.json").read_text()
    changed = sealed(json.loads(text) | {"seed": 9})
    s3_store.client.put_object(Bucket="datasets", Key="many/dataset.json", Body=changed)
    new = locate_dataset(URL, tmp_path)
    assert new != old and new.parent == old.parent == tmp_path
    assert read_manifest(new).seed == 9 and (old / "dataset.json").read_text() == text


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://datasets/nothing", "there is no s3://datasets/nothing/dataset.json"),
        ("nonsense://x/y", "nonsense://x/y: Protocol not known"),
        ("http:///ben", "http:///ben: it names no host or bucket, as in http://NAME/ben"),
        ("s3:///ben", "s3:///ben: it names no host or bucket"),
        ("http://[::1/ben", r"http://\[::1/ben: Invalid IPv6 URL"),
    ],
)
def test_place_without_a_dataset_is_named(s3_store, tmp_path, url, told):
    with pytest.raises(ValueError, match=told):
        locate_dataset(url, tmp_path)


def served(tmp_path, dataset, **changes):
    """A copy of a dataset's small files, its manifest changed."""
    folder = tmp_path / "served"
    folder.mkdir()
    table = json.loads((dataset / "dataset.json").read_text()) | changes
    (folder / "dataset.json").write_text(sealed(table))
    return folder


def test_manifest_of_a_newer_major_version_is_refused_by_its_url(big_window_dataset, tmp_path):
    with LoopbackStore(served(tmp_path, big_window_dataset, format_version="2.0")) as store:
        told = rf"{store.url}/dataset.json has format version 2.0; this fusmae reads 1.x"
        with pytest.raises(ValueError, match=told):
            locate_dataset(store.url, tmp_path / "cache")


def test_a_manifest_that_was_edited_by_hand_is_refused_by_its_url(big_window_dataset, tmp_path):
    folder = served(tmp_path, big_window_dataset)
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace('"seed": 3', '"seed": 4'))
    url, cache = f"file://{folder}", tmp_path / "cache"
    for place in ({"path": folder}, {"path": url, "cache": cache}):
        with pytest.raises(ValueError, match=rf"^{place['path']}/dataset.json was changed"):
            open_dataset(**place)
    assert not cache.exists()


def test_manifest_cannot_have_files_written_outside_of_the_mirror(big_window_dataset, tmp_path):
    outside = [{"path": "../../samples.parquet", "bytes": 1, "sha256": "0"}]
    files = json.loads((big_window_dataset / "dataset.json").read_text())["splits"]
    files["val"]["index"] = outside[0]
    folder = served(tmp_path, big_window_dataset, splits=files)
    refused = pytest.raises(ValueError, match="names a file outside of it")
    with LoopbackStore(folder) as store, refused:
        locate_dataset(store.url, tmp_path / "cache")


@pytest.mark.parametrize("ranges", [True, False])
def test_http_server_with_and_without_ranges(big_window_dataset, tmp_path, monkeypatch, ranges):
    monkeypatch.setattr("fusmae.data.origin.PIECE_BYTES", 10_000)
    with LoopbackStore(big_window_dataset, ranges=ranges) as store:
        dataset = locate_dataset(store.url, tmp_path)
        assert digests(dataset, 20) == digests(big_window_dataset, 20)
        pieces = sum(-(-shard.bytes // 10_000) for shard in train_shards(dataset))
        assert sum(shard_gets(store).values()) == (pieces if ranges else 12)


def test_pythons_own_http_server(big_window_dataset, tmp_path):
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        command,
        cwd=big_window_dataset,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = server.stdout.readline().split(" port ")[1].split()[0]
        dataset = locate_dataset(f"http://127.0.0.1:{port}", tmp_path)
        assert digests(dataset, 20) == digests(big_window_dataset, 20)
    finally:
        server.kill()
        server.communicate()


@pytest.fixture
def certificate(tmp_path):
    """A self-signed one of 127.0.0.1 with its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(secret + built.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize("is_trusted", [True, False])
def test_https_is_read_if_the_certificate_is_trusted(
    big_window_dataset, tmp_path, certificate, is_trusted
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    program = (
        "import sys; from fusmae.data import open_dataset, origin\n"
        "origin.DELAYS_S = (0.01,)\n"
        "try:\n"
        "    ds = open_dataset(sys.argv[1], cache=sys.argv[2])\n"
        "    print(float(ds[70]['s1'].double().sum()))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    with LoopbackStore(big_window_dataset, tls=context) as store:
        done = subprocess.run(
            [sys.executable, "-c", program, store.url, tmp_path / "cache"],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | ({"SSL_CERT_FILE": str(certificate)} if is_trusted else {}),
        )
        gets = shard_gets(store)
    (told,) = done.stdout.splitlines() or [done.stderr]
    if is_trusted:
        assert float(told) == float(open_dataset(big_window_dataset)[70]["s1"].double().sum())
        assert sum(gets.values()) == 1
    else:
        assert told.startswith(f"cannot read {store.url}/dataset.json, asked 2 times: ")
        assert "certificate" in told and not gets


@pytest.fixture
def fake_stores(big_window_dataset, monkeypatch):
    """`gs` and `hf` as fsspec knows them, with `big_window_dataset` in each: the one asynchronous,
    as gcsfs is, the other not, as huggingface_hub's; and how often each was asked for a shard."""
    fsspec, asyn = pytest.importorskip("fsspec"), pytest.importorskip("fsspec.asyn")
    asked = Counter()

    def read(path, root, start, end):
        asked[path] += path.endswith(".tar")
        data = (big_window_dataset / path.removeprefix(f"{root}/")).read_bytes()
        return data[start:end]

    class Gs(asyn.AsyncFileSystem):
        protocol, cachable = "gs", False

        async def _cat_file(self, path, start=None, end=None, **_):
            return read(path, "bucket/many", start, end)

    class Hf(fsspec.AbstractFileSystem):
        protocol, cachable = "hf", False

        def cat_file(self, path, start=None, end=None, **_):
            return read(path, "datasets/owner/many", start, end)

    known = sys.modules["fsspec.registry"]._registry
    for fake in (Gs, Hf):
        monkeypatch.setitem(known, fake.protocol, fake)
    return asked


@pytest.mark.parametrize("url", ["gs://bucket/many", "hf://datasets/owner/many"])
def test_stores_behind_fsspec_are_read_whether_they_are_asynchronous_or_not(
    fake_stores, big_window_dataset, tmp_path, monkeypatch, url
):
    monkeypatch.setattr("fusmae.data.origin.PIECE_BYTES", 20_000)
    dataset = locate_dataset(url, tmp_path)
    assert digests(dataset, 20) == digests(big_window_dataset, 20)
    pieces = sum(-(-shard.bytes // 20_000) for shard in train_shards(dataset))
    assert sum(fake_stores.values()) == pieces
    with pytest.raises(ValueError, match=rf"there is no {url[:5]}.*/dataset.json"):
        locate_dataset(f"{url}/elsewhere", tmp_path)


def test_a_store_whose_package_is_missing_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"^gs://bucket/many[: ].*gcsfs"):
        locate_dataset("gs://bucket/many", tmp_path)


def test_hugging_face_urls_are_understood(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    from fusmae.data.origin import Origin

    monkeypatch.setattr(hub.HfFileSystem, "cat_file", lambda self, path, **_: path.encode())
    text = Origin("hf://datasets/owner/name").read_manifest()
    assert text == b"datasets/owner/name/dataset.json"


def test_rate_limit_of_the_loopback_store_holds(big_window_dataset, tmp_path):
    total = sum(shard.bytes for shard in train_shards(big_window_dataset))
    with LoopbackStore(big_window_dataset, bytes_per_s=total) as store:
        dataset = locate_dataset(store.url, tmp_path)
        started = time.monotonic()
        with TrainLoader(dataset, DataConfig(), SEED, 8, 0, 1, 8) as loader:
            next(loader)
        assert 0.8 < time.monotonic() - started < 20


def test_local_paths_do_not_import_fsspec(tiny_dataset):
    program = (
        "import sys; from pathlib import Path\n"
        "from fusmae.config import DataConfig\n"
        "from fusmae.data import TrainLoader, locate_dataset\n"
        "dataset = locate_dataset(sys.argv[1], Path('none'))\n"
        "loader = TrainLoader(dataset, DataConfig(), 0, 4, 0, 1, 4)\n"
        "next(loader); loader.close()\n"
        "print([m for m in ('fsspec', 'aiohttp') if m in sys.modules], Path('none').exists())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_dataset], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[] False\n", done.stderr


def test_keys_of_a_url_need_pyarrow_and_its_shards_are_not_fetched_for_them(
    big_window_dataset, tmp_path, monkeypatch
):
    with LoopbackStore(big_window_dataset) as store:
        view = open_dataset(store.url, cache=tmp_path)
        asked = Counter(store.gets)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(
            ValueError, match=r"samples\.parquet needs pyarrow: pip install pyarrow"
        ):
            view.sample("train-0-0")
        assert store.gets == asked
