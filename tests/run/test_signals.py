"""Signals are noted, a second Ctrl-C ends the process, and handlers are given back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fasta2c.run import signals
from fasta2c.run.signals import SignalWatch


@pytest.fixture(autouse=True)
def handlers_kept() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in signals.WATCHED}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_and_the_handler_given_back(signum: signal.Signals) -> None:
    def mine(number: int, frame: object) -> None:
        raise AssertionError

    signal.signal(signum, mine)
    with SignalWatch() as watch:
        os.kill(os.getpid(), signum)
        assert watch.received == signum
    assert signal.getsignal(signum) is mine


def test_the_first_signal_counts() -> None:
    with SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.received == signal.SIGTERM


def test_handlers_are_given_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), SignalWatch():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def test_nohup_stays_in_force() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGHUP)
        assert watch.received is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_other_threads_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with SignalWatch() as watch:
            seen.extend([signal.getsignal(signal.SIGINT), watch.received])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]


SECOND = """
import os, signal, time
from fasta2c.run.signals import SignalWatch
with SignalWatch() as watch:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        print(watch.received, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("still here", flush=True)
    finally:
        print("held up", flush=True)
"""


def test_a_second_interrupt_leaves_at_once() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(signals.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", SECOND], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "2\n", "")


WITH_A_CHILD = """
import multiprocessing, os, signal, time
from fasta2c.run.signals import SignalWatch
def hang():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(1000)
child = multiprocessing.get_context("fork").Process(target=hang)
child.start()
print(child.pid, flush=True)
with SignalWatch():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_second_interrupt_takes_environments_that_hang_with_it() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(signals.__file__).parents[2])}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", WITH_A_CHILD], env=environment, text=True, **output) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert process.wait(timeout=60) == 130
    assert ended(child)


def ended(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process ends within this time."""
    status = Path(f"/proc/{pid}/status")
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "State:\tZ" not in status.read_text():
                time.sleep(seconds / 100)
                continue
        return True
    os.kill(pid, signal.SIGKILL)
    return False


DEAF = """
import ctypes, os, signal, sys, threading
from fasta2c.run.signals import SignalWatch
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with SignalWatch(patience=0.5) as watch:
    os.kill(os.getpid(), signal.SIGTERM)
    print(watch.received, flush=True)
with SignalWatch(patience=0.5) as watch:
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # for ever, and no signal ends it
print("unreachable", flush=True)
"""


def test_a_process_that_hears_of_no_signal_ends() -> None:
    """Python's own handlers do not run while code that is not Python's waits; one that does hear goes on."""
    environment = {**os.environ, "PYTHONPATH": str(Path(signals.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", DEAF], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "15\n", "")


def test_the_wakeup_of_others_is_given_back() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write)
    try:
        with SignalWatch(patience=5):
            assert signal.set_wakeup_fd(-1) not in (-1, write)
        assert signal.set_wakeup_fd(before) == write
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)
