"""One writer a dataset in S3: runs that start together, renewals that fail, locks that are lost."""

import errno
import pickle
import sys
import threading
import time

import pytest

from fusmae_ingest import cli, finish, object_lock, object_store, record

from .s3_server import objects, serving

LOCK = ".ingest/lock"
OPTIONS = ("--samples-per-shard", "4")
# Short, and long enough for a renewal on a busy machine.
RENEWAL_S = 0.4
TAKEOVER_S = 3 * RENEWAL_S


@pytest.fixture(scope="module")
def s3():
    with serving() as client:
        yield client


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(object_lock, "LOCK_RENEWAL_S", RENEWAL_S)


def store(name: str) -> object_store.ObjectStore:
    return object_store.ObjectStore(f"s3://datasets/{name}")


def enter_together(name: str, num_runs: int) -> list[str]:
    """What becomes of runs that come at the same time: "in" or the error's message."""
    start, told = threading.Barrier(num_runs), []
    all_told = threading.Event()

    def run() -> None:
        own = store(name)
        start.wait()
        try:
            with own.locked():
                told.append("in")
                all_told.wait(10)
                own.require_lock()
        except ValueError as error:
            told.append(str(error))
        if len(told) == num_runs:
            all_told.set()

    threads = [threading.Thread(target=run) for _ in range(num_runs)]
    for thread in threads:
        thread.start()
    while len(told) < num_runs and any(thread.is_alive() for thread in threads):
        time.sleep(0.01)
    all_told.set()
    for thread in threads:
        thread.join()
    return told


def assert_one_entered(told: list[str], num_runs: int) -> None:
    assert told.count("in") == 1, told
    assert len([t for t in told if "another run is writing s3://" in t]) == num_runs - 1, told
    assert len(told) == num_runs


@pytest.mark.parametrize("dead", [False, True], ids=["nothing there", "a dead run's lock"])
def test_of_runs_that_come_at_the_same_time_exactly_one_enters(s3, dead):
    for round_ in range(3 if dead else 12):
        name = f"together-{dead}-{round_}"
        if dead:
            s3.put_object(Bucket="datasets", Key=f"{name}/{LOCK}", Body=b"dead 7\n")
        assert_one_entered(enter_together(name, 4), 4)
        assert objects(s3, name) == {}


@pytest.mark.parametrize("dead", [False, True], ids=["nothing there", "a dead run's lock"])
@pytest.mark.parametrize("answer", ["ignores", "refuses"])
def test_exactly_one_enters_where_the_store_knows_no_conditions(s3, monkeypatch, answer, dead):
    put, writers = object_store.ObjectStore.put, []

    def without(self, path, data, **condition):
        if condition and answer == "refuses":
            raise OSError(errno.ENOSYS, "not implemented", f"{self}/{path}")
        if self not in writers:
            # All have looked, and one writes after the other.
            writers.append(self)
            time.sleep(0.05 * len(writers))
        put(self, path, data)

    monkeypatch.setattr(object_store.ObjectStore, "put", without)
    for round_ in range(2):
        writers.clear()
        name = f"unconditional-{answer}-{dead}-{round_}"
        if dead:
            s3.put_object(Bucket="datasets", Key=f"{name}/{LOCK}", Body=b"dead 7\n")
        assert_one_entered(enter_together(name, 4), 4)
        assert objects(s3, name) == {}


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_second_write_that_fails_in_passing_is_no_refusal(s3, monkeypatch, lost):
    """One run's second write is lost where conditions are ignored, and a late one takes over."""
    put, count = object_store.ObjectStore.put, [0]
    early, late = store(f"second-{lost}"), store(f"second-{lost}")

    def ignoring(self, path, data, **condition):
        if self is early:
            count[0] += 1
            if count[0] == 2 and lost == "answer":
                put(self, path, data)
            if count[0] == 2:
                # The late run had looked before there was a lock, and its write comes now.
                threading.Timer(RENEWAL_S / 2, put, (late, path, b"theirs 0\n")).start()
                raise OSError(errno.EIO, "no answer", f"{self}/{path}")
        put(self, path, data)

    monkeypatch.setattr(object_store.ObjectStore, "put", ignoring)
    with pytest.raises(ValueError, match="another run is writing s3://"), early.locked():
        pass
    assert count == [2]


def test_a_lock_that_is_renewed_keeps_others_out_and_a_dead_one_does_not(s3, capsys):
    one, other = store("renewed"), store("renewed")
    with one.locked():
        first = objects(s3, "renewed")[LOCK]
        # S3 compared, so nobody had to wait: see `RunLock._take`.
        assert first.endswith(b" 0\n")
        with pytest.raises(ValueError, match="another run is writing s3://"), other.locked():
            pass
        one.require_lock()
        assert objects(s3, "renewed")[LOCK] != first
    s3.put_object(Bucket="datasets", Key=f"renewed/{LOCK}", Body=b"dead 7\n")
    began = time.monotonic()
    with other.locked():
        assert time.monotonic() - began >= TAKEOVER_S
    assert "is locked: looking for 1.2 s" in capsys.readouterr().err
    assert objects(s3, "renewed") == {}


def failing_puts(monkeypatch, fails):
    """Let the n-th write of a lock (from 0) end in an error where `fails(n)`; their number."""
    put, count = object_store.ObjectStore.put, [0]

    def sometimes(self, path, data, **condition):
        count[0] += 1
        if fails(count[0] - 1):
            raise OSError(5, "no answer", f"{self}/{path}")
        put(self, path, data, **condition)

    monkeypatch.setattr(object_store.ObjectStore, "put", sometimes)
    return count


def test_a_renewal_that_fails_twice_is_made_up_for(s3, monkeypatch):
    # Two writes take the lock, as the second is refused.
    count = failing_puts(monkeypatch, lambda number: number in (2, 3))
    own = store("twice")
    with own.locked():
        deadline = time.monotonic() + 5
        while count[0] < 6:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        own.require_lock()
        assert objects(s3, "twice")[LOCK].split()[0].decode() == own._lock.token
        time.sleep(TAKEOVER_S + 0.2)
        own.require_lock()
    assert objects(s3, "twice") == {}


def test_a_lock_that_cannot_be_renewed_is_given_up_before_another_run_may_have_it(s3, monkeypatch):
    failing_puts(monkeypatch, lambda number: number > 1)
    own = store("never")
    with own.locked():
        own.require_lock()
        time.sleep(TAKEOVER_S + 0.2)
        told = r"never/.ingest/lock was not renewed for 1.2 s \(no answer\).*same command again"
        with pytest.raises(ValueError, match=told):
            own.require_lock()


def test_an_answer_that_was_lost_is_no_lost_lock(s3, monkeypatch):
    put = object_store.ObjectStore.put

    def silent(self, path, data, **condition):
        put(self, path, data, **condition)
        raise OSError(5, "no answer", f"{self}/{path}")

    monkeypatch.setattr(object_store.ObjectStore, "put", silent)
    own = store("unanswered")
    with own.locked():
        time.sleep(TAKEOVER_S + 0.2)
        own.require_lock()


def test_a_lock_that_is_anothers_or_gone_is_seen_by_the_run_and_its_workers_and_stays(s3):
    key = {"Bucket": "datasets", "Key": f"taken/{LOCK}"}
    own = store("taken")
    with own.locked():
        worker = pickle.loads(pickle.dumps(own))
        worker.require_lock()
        s3.put_object(**key, Body=b"theirs 0\n")
        for place in (own, worker):
            with pytest.raises(ValueError, match="another run has taken s3://datasets/taken over"):
                place.require_lock()
        time.sleep(1.5 * RENEWAL_S)
        assert objects(s3, "taken") == {LOCK: b"theirs 0\n"}
    assert objects(s3, "taken") == {LOCK: b"theirs 0\n"}
    s3.delete_object(**key)
    with own.locked():
        s3.delete_object(**key)
        with pytest.raises(ValueError, match="the lock of this run, was removed"):
            own.require_lock()
        time.sleep(1.5 * RENEWAL_S)
        assert objects(s3, "taken") == {}


def test_a_lock_that_cannot_be_removed_is_a_warning_and_no_error(s3, monkeypatch, capsys):
    def refuse(self, path):
        raise PermissionError(13, "Access Denied", f"{self}/{path}")

    monkeypatch.setattr(object_store.ObjectStore, "remove", refuse)
    with store("kept").locked():
        pass
    told = capsys.readouterr().err
    assert told.startswith("warning: s3://datasets/kept/.ingest/lock: Access Denied")
    assert told.count("\n") == 1


def last_before_a_record(monkeypatch, then):
    write = record.write_file

    def first(own, path, data):
        done = write(own, path, data)
        if "/blocks/" in path:
            then()
        return done

    monkeypatch.setattr(record, "write_file", first)


def last_before_the_manifest(monkeypatch, then):
    write = finish.write_file

    def card(own, path, data):
        done = write(own, path, data)
        if path == "README.md":
            then()
        return done

    monkeypatch.setattr(finish, "write_file", card)


@pytest.mark.parametrize("moment", [last_before_a_record, last_before_the_manifest])
def test_a_run_whose_lock_is_taken_over_writes_no_manifest_and_leaves_the_lock(
    s3, archive_v1, paths, monkeypatch, capsys, moment
):
    # Long enough for a machine that is slow for a while, which is told otherwise.
    monkeypatch.setattr(object_lock, "LOCK_RENEWAL_S", 5.0)
    name = moment.__name__
    moment(
        monkeypatch,
        lambda: s3.put_object(Bucket="datasets", Key=f"{name}/{LOCK}", Body=b"theirs 0\n"),
    )
    args = ("bigearthnet", *paths(archive_v1), "--out", f"s3://datasets/{name}", *OPTIONS)
    monkeypatch.setattr(sys, "argv", ["fusmae-ingest", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert ended.value.code == 1 and len(told) == 1
    assert f"another run has taken s3://datasets/{name} over" in told[0]
    left = objects(s3, name)
    assert left[LOCK] == b"theirs 0\n"
    assert "dataset.json" not in left
    assert ("README.md" in left) == (moment is last_before_the_manifest)
    num_records = len([path for path in left if "/blocks/" in path])
    assert (num_records == 1) == (moment is last_before_a_record)
