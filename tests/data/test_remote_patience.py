"""How long a store that fails is asked again, and who is told of it."""

from functools import partial
from io import BytesIO
from types import SimpleNamespace

import pytest

from fusmae.data import locate_dataset, open_dataset
from fusmae.data.cache import UnfetchableError
from fusmae.data.origin import Origin
from fusmae.manifest import FileRecord

from .conftest import retry_fast
from .object_store import LoopbackStore
from .remote_batches import digests

pytestmark = pytest.mark.timeout(90)
SHORTLY = [0.5, 1, 2, 4, 8]


@pytest.fixture
def dead_store(monkeypatch):
    """A store that always fails, and the pauses until it is given up; no time passes but what a
    failure is said to take."""
    store = SimpleNamespace(origin=Origin("s3://datasets/many"), answer_s=0.0, body=None, pauses=[])
    clock = SimpleNamespace(now_s=0.0)

    def read(*_):
        clock.now_s += store.answer_s
        if store.body is None:
            raise OSError("503 slow down")
        return store.body

    def pause(seconds):
        clock.now_s += seconds
        store.pauses += [seconds] if seconds else []

    def fetch(is_read):
        store.origin.fetch(FileRecord("a.tar", 100, "0"), BytesIO(), pause, is_read)

    store.fetch = fetch
    time = SimpleNamespace(monotonic=lambda: clock.now_s, sleep=pause)
    monkeypatch.setattr("fusmae.data.origin.time", time)
    monkeypatch.setattr(store.origin, "_read", read)
    monkeypatch.setattr(store.origin, "_place", lambda: None)
    return store


@pytest.mark.filterwarnings("ignore:cannot read")
def test_outages_of_minutes_are_waited_for_while_a_dataset_is_read_and_not_at_its_opening(
    dead_store,
):
    with pytest.raises(UnfetchableError, match=r"s3://datasets/many/a\.tar, asked 16 times: 503"):
        dead_store.fetch(is_read=True)
    assert dead_store.pauses == [*SHORTLY, 16, *[30] * 9] and sum(dead_store.pauses) > 300
    for open_it in (partial(dead_store.fetch, is_read=False), dead_store.origin.read_manifest):
        dead_store.pauses.clear()
        with pytest.raises(ValueError, match="asked 6 times: 503"):
            open_it()
        assert dead_store.pauses == SHORTLY


@pytest.mark.filterwarnings("ignore:cannot read")
def test_slow_failures_and_short_bodies_are_not_waited_for_as_often(dead_store):
    dead_store.answer_s = 60
    with pytest.raises(UnfetchableError, match="asked 5 times: 503"):
        dead_store.fetch(is_read=True)
    dead_store.answer_s, dead_store.body = 0, bytes(50)
    dead_store.pauses.clear()
    with pytest.raises(UnfetchableError, match="asked 6 times: 50 of 100 bytes"):
        dead_store.fetch(is_read=True)
    assert dead_store.pauses == SHORTLY


def test_a_shard_has_the_patience_of_reading_and_an_index_that_of_opening(
    big_window_dataset, tmp_path, monkeypatch
):
    retry_fast(monkeypatch, 0.01)
    monkeypatch.setattr("fusmae.data.origin.READ_DELAYS_S", (0.01,) * 4)
    with LoopbackStore(big_window_dataset) as store:
        store.fault = lambda path, n: "500" if path.endswith(".parquet") and n < 2 else ""
        with pytest.raises(ValueError, match=r"\.parquet, asked 2 times"):
            locate_dataset(store.url, tmp_path)
        store.fault = lambda path, n: "500" if path.endswith(".tar") and n < 4 else ""
        dataset = locate_dataset(store.url, tmp_path)
        assert digests(dataset, 20) == digests(big_window_dataset, 20)


def told(warned):
    return [str(warning.message) for warning in warned if "so far" in str(warning.message)]


def test_who_waits_for_a_store_that_does_not_answer_is_told_once_and_then_gets_one_line(
    tmp_path, monkeypatch
):
    retry_fast(monkeypatch, 0.01, 0.02, 0.04, 0.04)
    monkeypatch.setattr("fusmae.data.origin.TELL_S", 0.02)
    with LoopbackStore(tmp_path) as store:
        url = store.url  # of a server that is gone
    error = pytest.raises(ValueError, match=rf"cannot read {url}/dataset.json, asked 5 times: .*")
    with pytest.warns(UserWarning) as warned, error as refused:
        locate_dataset(url, tmp_path)
    (only,) = told(warned)
    assert only.startswith(f"cannot read {url}/dataset.json so far: ") and "5 times" in only
    assert "\n" not in str(refused.value)


def test_each_outage_of_a_store_is_told_once_and_survived(
    big_window_dataset, tmp_path, monkeypatch
):
    retry_fast(monkeypatch, 0.01, 0.02, 0.04, 0.04)
    monkeypatch.setattr("fusmae.data.origin.TELL_S", 0.02)
    with LoopbackStore(big_window_dataset) as store:
        dataset = locate_dataset(store.url, tmp_path)
        store.fault = lambda path, number: "500" if number < 4 else ""
        view = open_dataset(dataset)
        for row in (0, 70):
            with pytest.warns(UserWarning) as warned:
                view[row]
            assert len(told(warned)) == 1


@pytest.mark.parametrize("status", ["401", "403", "410"])
def test_an_http_server_that_refuses_is_asked_once(big_window_dataset, tmp_path, status):
    with LoopbackStore(big_window_dataset) as store:
        dataset = locate_dataset(store.url, tmp_path)
        store.fault = lambda path, number: status
        told = rf"cannot read {store.url}/shards/train/\S+: {status}"
        with pytest.raises(ValueError, match=told):
            open_dataset(dataset, "train")[0]
        assert sum(store.gets[path] for path in store.gets if path.endswith(".tar")) == 1
        with pytest.raises(ValueError, match=rf"cannot read {store.url}/dataset.json: {status}"):
            locate_dataset(store.url, tmp_path / "other")


@pytest.mark.parametrize("form", ["gcsfs", "huggingface_hub"])
def test_refusals_are_known_in_the_forms_that_packages_raise_them_in(dead_store, form, monkeypatch):
    class HttpError(Exception):
        code = "403" if form == "huggingface_hub" else 403  # S3's are names
        response = SimpleNamespace(status_code=403)

    def read(*_):
        raise HttpError("forbidden")

    monkeypatch.setattr(dead_store.origin, "_read", read)
    with pytest.raises(UnfetchableError, match=r"cannot read s3://datasets/many/a.tar: forbidden"):
        dead_store.fetch(is_read=True)
    assert dead_store.pauses == []
