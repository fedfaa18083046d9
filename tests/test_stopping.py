"""Signals: the first asks, the second ends, and the grace time ends too, whatever the program waits for."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import gpbackprop as gp
from gpbackprop.stopping import CODES, ECHO, stopping_at_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

# A program that is deaf in its main thread: a single call that Python's own handlers wait for.
DEAF = """
import ctypes, sys
from gpbackprop.stopping import stopping_at_signals
asked = lambda: print("asked", flush=True)
with stopping_at_signals(asked, float(sys.argv[1]) if sys.argv[1:] else None):
    print("ready", flush=True)
    libc = ctypes.CDLL(None)
    while True:
        libc.usleep(900_000)
"""


@pytest.fixture
def deaf():
    """Starts the program and waits until it hears."""
    programs = []

    def start(*arguments, stderr=subprocess.PIPE):
        environment = os.environ | {"PYTHONPATH": str(Path(gp.__file__).parent.parent)}
        pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "encoding": "utf-8"}
        programs.append(subprocess.Popen([sys.executable, "-c", DEAF, *map(str, arguments)], env=environment, **pipes))
        assert programs[-1].stdout.readline() == "ready\n"
        return programs[-1]

    yield start
    for program in programs:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_second_signal_ends_a_program_that_is_in_the_middle_of_a_call(deaf, number):
    program = deaf()
    program.send_signal(number)
    assert program.stdout.readline() == "asked\n"
    time.sleep(2 * ECHO)
    start = time.monotonic()
    program.send_signal(number)
    assert program.wait(timeout=10) == 128 + number
    assert time.monotonic() - start < 0.7
    assert "told twice" in program.stderr.read()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, a disk without room")
def test_a_second_signal_ends_a_program_whose_words_find_no_room(deaf):
    with open("/dev/full", "w") as full:
        program = deaf(stderr=full)
        program.send_signal(signal.SIGTERM)
        assert program.stdout.readline() == "asked\n"
        time.sleep(2 * ECHO)
        program.send_signal(signal.SIGTERM)
        assert program.wait(timeout=10) == 128 + signal.SIGTERM


def test_the_same_signal_by_two_ways_is_one(deaf):
    program = deaf()
    program.send_signal(signal.SIGTERM)
    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == "asked\n"
    time.sleep(2 * ECHO)
    assert program.poll() is None


@pytest.mark.parametrize(("number", "code"), CODES.items(), ids=str)
def test_the_grace_time_ends_the_program_with_the_code_of_its_signal(deaf, number, code):
    program = deaf(0.2)
    start = time.monotonic()
    program.send_signal(number)
    assert program.wait(timeout=10) == code
    assert 0.1 < time.monotonic() - start < 0.8
    assert "not saved within the grace time of 0.2 s" in program.stderr.read()


def test_the_first_signal_only_asks_and_the_handlers_of_before_come_back():
    before = {number: signal.getsignal(number) for number in CODES}
    asked = threading.Event()
    with stopping_at_signals(asked.set, grace=30) as stop:
        assert stop.code is None
        signal.raise_signal(signal.SIGTERM)
        assert asked.wait(5)
        assert stop.code == 75
    assert {number: signal.getsignal(number) for number in CODES} == before
    assert threading.active_count() == len([t for t in threading.enumerate() if t.name != "signals of a run"])


def test_a_thread_leaves_the_signals_to_its_program():
    def inside():
        with stopping_at_signals(lambda: None) as stop:
            codes.append(stop.code)

    codes = []
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert codes == [None]
