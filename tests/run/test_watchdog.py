"""A wait that never ends: an error where Python runs, the process's end where it does not."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from fasta2c.errors import RunError
from fasta2c.run.watchdog import Watchdog
from fasta2c.timing import PhaseTimer


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("wait", [time.sleep, spin])
def test_a_wait_of_the_main_thread_becomes_an_error(wait):
    with pytest.raises(RunError, match="^too long$"), Watchdog(0.3, lambda: 1.0, "too long"):
        wait(60)


def test_many_waits_that_end_are_none():
    timer = PhaseTimer()
    with Watchdog(0.2, lambda: timer.since("env"), "too long"):
        for _ in range(30):
            with timer("env"):
                time.sleep(0.02)
        with timer("act"):
            time.sleep(0.5)
    assert min(timer.seconds["env"], timer.seconds["act"]) > 0.2, "in all, longer than one wait may be"


def test_somebody_elses_signal_is_passed_on():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda signum, frame: heard.append(signum))
    try:
        with Watchdog(60.0, lambda: None, "too long"):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.05)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_of_no_timeout_nothing_comes():
    with Watchdog(0.0, lambda: 1.0, "too long"):
        assert not any(thread.name == "fasta2c watchdog" for thread in threading.enumerate())


def test_the_timer_says_since_when_a_phase_goes_on():
    timer = PhaseTimer()
    assert timer.since("env") is None
    with timer("env"):
        since = timer.since("env")
        assert since is not None and since == timer.since("env")
        with timer("copy"):
            assert timer.since("env") is None
        assert timer.since("env") > since
    assert timer.since("env") is None


def run(code):
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - started


def test_where_no_error_is_heard_of_the_process_ends():
    done, _ = run(
        """
        import time
        from fasta2c.run import watchdog
        watchdog.GRACE_SECONDS = 0.3
        with watchdog.Watchdog(0.3, lambda: 1.0, "too long"):
            while True:
                try:
                    time.sleep(60)
                except Exception:
                    pass
        """
    )
    assert done.returncode == 1 and done.stderr == "fasta2c: warning: too long\n"


def test_a_process_that_was_stopped_for_a_while_has_not_waited():
    done, _ = run(
        """
        import os, signal, subprocess, time
        from fasta2c.run.watchdog import Watchdog
        with Watchdog(1.0, lambda: 1.0, "too long"):
            subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.4)
        """
    )
    assert done.returncode == 0 and not done.stderr
