"""One process at a time in a run: who holds it is said, and what the dead leave behind is taken over."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpbackprop as gp
from gpbackprop import lock
from gpbackprop.errors import UsageError
from gpbackprop.lock import Lock

PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to tell processes by")


def holder(directory: Path) -> dict:
    return json.loads((directory / lock.NAME).read_text())


def left_behind(directory: Path, **facts) -> None:
    """A lock file as a process leaves it that was killed, with `facts` changed."""
    one = Lock(directory)
    text = json.dumps(holder(directory) | facts)
    one.close()
    (directory / lock.NAME).write_text(text)


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats within a test."""
    for name, seconds in (("BEAT", 0.02), ("STALE", 0.3), ("SETTLE", 0.01)):
        monkeypatch.setattr(lock, name, seconds)


@pytest.fixture
def without_flock(monkeypatch):
    """A file system of a network that has no locks."""
    monkeypatch.setattr(lock, "_flock", lambda file: None)


HOLD = """
import sys, time
from pathlib import Path
from gpbackprop.lock import Lock
held = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the directory."""
    environment = os.environ | {"PYTHONPATH": str(Path(gp.__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_holds_the_directory(tmp_path, other):
    with pytest.raises(UsageError, match=rf"another process works in it: process {other.pid} on .*sign of life"):
        Lock(tmp_path)
    assert holder(tmp_path)["pid"] == other.pid


@PROC
def test_without_flock_a_living_process_is_known_by_its_number(tmp_path, other, without_flock):
    with pytest.raises(UsageError, match=f"process {other.pid} on"):
        Lock(tmp_path)


@pytest.mark.parametrize("flock", [True, False])
@PROC
def test_the_lock_of_a_killed_process_is_taken_over_and_says_whose_it_was(tmp_path, other, flock, monkeypatch):
    if not flock:
        monkeypatch.setattr(lock, "_flock", lambda file: None)
    other.kill()
    other.wait()
    taken = Lock(tmp_path)
    assert f"process {other.pid} on" in taken.stale
    taken.close()
    assert Lock(tmp_path).stale == ""


@PROC
def test_a_number_that_is_used_again_is_not_taken_for_the_process_that_had_it(tmp_path, without_flock, quick):
    left_behind(tmp_path, started=1)
    assert Lock(tmp_path).stale


def test_what_ran_elsewhere_is_known_by_its_heartbeat_and_who_waits_for_it_says_so(tmp_path, quick, caplog):
    left_behind(tmp_path, boot="another machine", host="node7")
    start = time.monotonic()
    with caplog.at_level("INFO", "gpbackprop"):
        taken = Lock(tmp_path)
    assert "on node7" in taken.stale
    assert time.monotonic() - start > 0.2
    assert re.search(
        r": waiting up to 0 s for a sign of life of process \d+ on node7 \(since .*, last sign", caplog.text
    )


@pytest.mark.parametrize(("silence", "wait"), [(0, 60), (20, 40), (3600, 10), (-3600, 60)])
def test_who_waits_says_for_how_long_at_most(tmp_path, monkeypatch, caplog, silence, wait):
    left_behind(tmp_path, boot="another machine")
    monkeypatch.setattr(lock, "_silence", lambda path: silence)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (_ for _ in ()).throw(InterruptedError()))
    with caplog.at_level("INFO", "gpbackprop"), pytest.raises(UsageError):
        Lock(tmp_path)
    assert f"waiting up to {wait} s" in caplog.text


def test_a_holder_of_an_hour_that_is_yet_to_come_is_not_waited_for_so_long(tmp_path, quick):
    left_behind(tmp_path, boot="another machine", host="node7")
    os.utime(tmp_path / lock.NAME, (time.time() + 3600,) * 2)
    start = time.monotonic()
    assert "on node7" in Lock(tmp_path).stale
    assert 0.2 < time.monotonic() - start < 5


def test_who_lives_keeps_the_directory_when_the_clock_is_set_ahead(tmp_path, quick, without_flock, monkeypatch):
    first = Lock(tmp_path)
    monkeypatch.setattr(lock, "_place", lambda: "another machine")
    os.utime(tmp_path / lock.NAME, (time.time() - 3600,) * 2)
    with pytest.raises(UsageError, match="another process works in it"):
        Lock(tmp_path)
    first.check()


def test_a_disk_that_takes_no_lock_is_told_with_what_to_do(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock, "_write", full)
    with pytest.raises(UsageError, match=r"\.lock: .*: No space left on device\. Make room in"):
        Lock(tmp_path)
    monkeypatch.undo()
    assert Lock(tmp_path).stale == ""


def test_what_lives_elsewhere_is_not_taken_over(tmp_path, quick, without_flock, monkeypatch):
    first = Lock(tmp_path)
    monkeypatch.setattr(lock, "_place", lambda: "another machine")
    with pytest.raises(UsageError, match="another process works in it: process"):
        Lock(tmp_path)
    first.check()


def test_a_process_that_stood_still_learns_that_it_lost_the_directory(tmp_path, quick, without_flock):
    first = Lock(tmp_path)
    (tmp_path / lock.NAME).write_text(json.dumps(holder(tmp_path) | {"pid": 1}))
    end = time.monotonic() + 5
    while not first._heart.lost and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(UsageError, match="taken it over"):
        first.check()
    first.close()
    assert holder(tmp_path)["pid"] == 1  # what is the other's stays as it is


def test_of_two_that_come_at_once_one_goes(tmp_path, quick, without_flock, monkeypatch):
    def also(file, text):
        write(file, json.dumps({"pid": 1, "host": "node7"}).encode())

    write = lock._write
    monkeypatch.setattr(lock, "_write", also)
    with pytest.raises(UsageError, match="came at the same time"):
        Lock(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": "x", "host": "y"}', "\0\0\0"])
def test_a_file_that_cannot_be_understood_is_nobodys(tmp_path, text):
    (tmp_path / lock.NAME).write_text(text)
    assert Lock(tmp_path).stale == ""


def test_a_lock_that_is_forgotten_ends(tmp_path):
    Lock(tmp_path)
    assert Lock(tmp_path).stale == ""
