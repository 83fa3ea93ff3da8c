"""The lock of a folder: runs that come at the same time, and what a run that failed leaves."""

import sys
import threading
from collections import Counter

import pytest

from fusmae_ingest.dataset import refuse_other_files
from fusmae_ingest.layout import SCRATCH
from fusmae_ingest.storage import LocalStore, write_file


@pytest.mark.parametrize("every_other_fails", [False, True])
def test_runs_that_come_at_the_same_time_are_refused_for_no_other_reason(
    tmp_path, every_other_fails
):
    told: Counter[str] = Counter()

    def run(place, start, fails):
        store = LocalStore(str(place))
        start.wait()
        try:
            refuse_other_files(store)
            with store.locked():
                if fails or store.exists("dataset.json"):
                    raise ValueError("ended")
                write_file(store, f"{SCRATCH}/plan.json", b"{}")
                write_file(store, "dataset.json", b"{}")
                store.remove_folder(SCRATCH)
            told["made"] += 1
        except Exception as error:
            told[str(error).partition(str(place))[0]] += 1

    # Threads hold the lock as processes do, since each opens the file for itself.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    for round_ in range(100):
        place, start = tmp_path / str(round_) / "d", threading.Barrier(4)
        fails = [every_other_fails and number % 2 == 1 for number in range(4)]
        runs = [threading.Thread(target=run, args=(place, start, failing)) for failing in fails]
        for thread in runs:
            thread.start()
        for thread in runs:
            thread.join()
        left = [path.name for path in place.iterdir()] if place.exists() else []
        assert left in ([], ["dataset.json"])
    sys.setswitchinterval(interval)
    refusals = {"another run is writing ", "another run has just ended in ", "ended"}
    assert told.keys() <= refusals | {"made"}
    assert 0 < told["made"] <= 100 if every_other_fails else told["made"] == 100


def test_a_run_that_fails_before_it_writes_leaves_nothing(tmp_path):
    def start(place, folder=""):
        with LocalStore(str(place)).locked():
            if folder:
                (place / folder).mkdir()
            raise ValueError

    out = tmp_path / "a" / "d"
    with pytest.raises(ValueError):
        start(out)
    assert list(tmp_path.iterdir()) == []
    out.mkdir(parents=True)
    with pytest.raises(ValueError):
        start(out, ".ingest/unnamed")
    assert list(out.iterdir()) == []
    with pytest.raises(ValueError):
        start(out, ".ingest/blocks")
    assert (out / ".ingest" / "blocks").is_dir()
    with LocalStore(str(out)).locked(), pytest.raises(ValueError, match="another run"):
        start(out)
