"""Signals are noted, a second Ctrl-C ends the process, and handlers are given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
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
