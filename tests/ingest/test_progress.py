"""What long work says of itself: lines in a log, a bar on a terminal, nothing of what it is not."""

import re
import sys
import time

import pytest

from fusmae_ingest import progress
from fusmae_ingest.progress import LongWork, describe, duration

from .packed_archives import pack
from .terminal import on_terminal


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99.4, "99 s"), (100, "2 min"), (5940, "99 min"), (11_100, "3 h 05 min")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_speed_and_end_come_from_this_run_alone():
    # 200 of 1,000 were there; 100 more took 10 s; so 700 take 70 s.
    assert describe(300, 1000, 200, 10, False) == "300/1,000 (30%), 10/s, 70 s left"
    assert describe(1000, 1000, 200, 80, False) == "1,000/1,000, 10/s, 80 s"
    assert describe(10**9, 4 * 10**9, 0, 10, True) == (
        "1.0 GB of 4.0 GB (25%), 100.0 MB/s, 30 s left"
    )


def test_the_first_second_has_no_speed():
    assert describe(24, 24, 0, 0.2, False) == "24/24, 0 s"
    assert describe(6, 24, 0, 0.9, False) == "6/24 (25%), 1 s"
    assert describe(10**6, 4 * 10**6, 0, 0.1, True) == "1.0 MB of 4.0 MB (25%), 0 s"


def test_work_that_stands_still_promises_no_end():
    assert describe(5, 10, 5, 60, False) == "5/10 (50%), 0.0/s, no end in sight yet"
    assert describe(0, 0, 0, 1, False) == "0/0, 0.0/s, 1 s"


def test_a_log_gets_a_line_now_and_then_and_a_last_one(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.2)
    with LongWork("Converting") as work:
        work.update(0, 1000)
        for done in range(1, 1001):
            time.sleep(0.001)
            work.update(done, 1000)
    *some, last = capsys.readouterr().err.splitlines()
    assert 3 <= len(some) <= 15
    for line in some:
        told = r"Converting: \d+/1,000 \(\d+%\), ([01] s|[\d,.]+/s, \d+ s left)"
        assert re.fullmatch(told, line), line
    assert re.fullmatch(r"Converting: 1,000/1,000, [\d,]+/s, \d+ s", last)


def test_a_log_tells_of_work_that_cannot_say_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.2)
    with LongWork("Listing"):
        time.sleep(0.5)
    assert capsys.readouterr().err == "Listing: 0 s so far\n" * 2


def test_work_that_had_nothing_to_do_says_nothing(capsys):
    with LongWork("Unpacking a.tar.gz", in_bytes=True):
        pass
    assert capsys.readouterr().err == ""


def test_a_run_that_fails_says_how_far_it_came(capsys):
    with pytest.raises(ValueError), LongWork("Converting") as work:
        work.update(3, 9)
        raise ValueError
    assert capsys.readouterr().err.startswith("Converting: 3/9 (33%)")


# ECMA-48: up one line, and erase it.
ERASE = "\x1b[1A\x1b[2K"


def test_a_terminal_gets_a_bar_with_the_same_words():
    work = "with LongWork('Converting') as work: work.update(0, 7); work.update(7, 7)"
    shown = on_terminal(
        [sys.executable, "-c", f"from fusmae_ingest.progress import LongWork\n{work}"], 100
    )
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(r"Converting ━+ 7/7, 0 s", plain) and "?" not in plain
    assert not shown.endswith(ERASE)


def test_a_terminal_keeps_no_bar_of_work_that_had_nothing_to_do():
    work = "with LongWork('Unpacking'): pass"
    shown = on_terminal(
        [sys.executable, "-c", f"from fusmae_ingest.progress import LongWork\n{work}"], 100
    )
    assert "Unpacking" in shown and shown.endswith(ERASE)


def test_every_verb_that_takes_long_says_so_in_a_log(
    made_datasets, archive_v2, fusmae_ingest, paths, tmp_path
):
    archive = tmp_path / "archive"
    result = fusmae_ingest("simulate", "bigearthnet", "--out", archive, "--patches", 2)
    assert re.search(r"^Simulating: 2/2, ", result.stderr)
    tables = [word for path in archive_v2.glob("*.parquet") for word in ("--metadata", path)]
    args = ("bigearthnet", *paths(archive_v2), *tables, "--out", tmp_path / "d")
    result = fusmae_ingest(*args)
    assert re.search(r"^Listing BigEarthNet v2: 24/24, ", result.stderr)
    result = fusmae_ingest("verify", made_datasets["v2"])
    assert re.search(r"^Verifying: (\d+)/\1, ", result.stderr)


@pytest.mark.parametrize(("ending", "verb"), [(".tar", "Indexing"), (".tar.gz", "Unpacking")])
def test_a_log_tells_how_far_an_archive_is_read(
    archive_v1, ending, verb, fusmae_ingest, paths, tmp_path
):
    _, s2, _, s1 = paths(archive_v1)
    given = [pack(folder, tmp_path / f"{name}{ending}") for folder, name in ((s2, "a"), (s1, "b"))]
    args = ("bigearthnet", "--s2", given[0], "--s1", given[1], "--out", tmp_path / "d")
    told = fusmae_ingest(*args, "--limit", 2).stderr.splitlines()
    for path in given:
        (line,) = (line for line in told if line.startswith(f"{verb} {path.name}: "))
        size = path.stat().st_size / 1e6
        assert re.search(rf": {size:.1f} MB of {size:.1f} MB, ", line), line
