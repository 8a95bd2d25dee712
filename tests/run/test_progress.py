"""Progress on a terminal, on a pipe, on a pipe whose reader has gone, and nowhere."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from fasta2c.run import progress
from fasta2c.run.progress import Progress


class Clock:
    """Stands in for the time module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal:
    """A pseudo-terminal: `stream` to write to, `shown` for what has arrived."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        self.stream: TextIO = os.fdopen(slave, "w")

    def shown(self) -> str:
        """What was written since the last call, without escape sequences."""
        raw = b""
        # The kernel hands a terminal's output on in its own time: what is written is not there at once.
        while select.select([self._master], [], [], 0.2)[0]:
            raw += os.read(self._master, 1 << 16)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode())

    def hang_up(self) -> None:
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal()
    yield made
    with contextlib.suppress(OSError):
        made.stream.close()


def test_plain_lines_come_every_five_seconds_and_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(1_000_000, stream=stream) as shown:
        for second in range(12):
            clock.now = 1000.0 + second
            shown.update(second * 10_000, sps=2000.0, episode_return=21.456)
    assert stream.getvalue().splitlines() == [
        "train: 50,000 / 1,000,000 env steps (5%), 2,000/s, return 21.46, 7:55 left",
        "train: 100,000 / 1,000,000 env steps (10%), 2,000/s, return 21.46, 7:30 left",
        "train: 110,000 / 1,000,000 env steps (11%), 2,000/s, return 21.46, 7:25 left",
    ]


def test_the_end_is_not_shown_twice_and_no_return_is_no_return(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(100, stream=stream) as shown:
        clock.now += 6
        shown.update(100, sps=50.0, episode_return=None)
    assert stream.getvalue() == "train: 100 / 100 env steps (100%), 50/s\n"


def test_evaluation_counts_episodes_and_reckons_its_own_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(100, initial=20, description="eval", unit="episodes", stream=stream) as shown:
        clock.now += 8
        shown.update(40)
    assert stream.getvalue() == "eval: 40 / 100 episodes (40%), 2.5/s, 0:24 left\n"


def test_hours_and_an_unknown_rate(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(10_000_000, stream=stream) as shown:
        clock.now += 6
        shown.update(0, sps=0.0, episode_return=0.0)
        clock.now += 6
        shown.update(0, sps=1000.0, episode_return=-1.0)
    first, second = stream.getvalue().splitlines()
    assert first == "train: 0 / 10,000,000 env steps (0%), return 0"
    assert second.endswith("return -1, 2:46:40 left")


def test_say_is_a_line(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress(10, stream=stream) as shown:
        shown.say("run in runs/[bold]x")
    shown.say("after the end")
    assert stream.getvalue() == "run in runs/[bold]x\n"


def test_quiet_shows_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    with Progress(10, quiet=True, stream=stream) as shown, Progress(10, quiet=True) as other:
        clock.now += 60
        for each in (shown, other):
            each.update(5, sps=1.0, episode_return=1.0)
            each.say("hello")
    captured = capsys.readouterr()
    assert stream.getvalue() == captured.out == captured.err == ""


def test_stderr_unless_given(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10) as shown:
        shown.update(10, sps=1.0, episode_return=None)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "train: 10 / 10 env steps (100%), 1/s\n"


def test_a_process_without_stderr(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(10) as shown:
        shown.update(10, sps=1.0, episode_return=None)
        shown.say("x")


def test_a_closed_stream_ends_the_display_only(clock: Clock) -> None:
    stream = io.StringIO()
    stream.close()
    with Progress(10, stream=stream) as shown:
        shown.say("x")
        shown.update(10, sps=1.0, episode_return=None)


def test_a_live_display_four_times_a_second(clock: Clock, terminal: Terminal) -> None:
    before = sys.stderr
    with Progress(1000, description="[b]x", stream=terminal.stream) as shown:
        terminal.shown()
        seen = []
        for tick in range(9):
            clock.now = 1000.0 + tick / 8
            shown.update(tick, sps=2.0, episode_return=3.5)
            seen.append(terminal.shown())
        assert [tick for tick, text in enumerate(seen) if text] == [0, 2, 4, 6, 8]
        assert "[b]x: 8 / 1,000 env steps (1%), 2/s, return 3.5, 8:16 left" in seen[8]
        shown.say("[bold]a line")
        above = terminal.shown()
        assert above.index("[bold]a line") < above.index("[b]x: 8 /"), "the display is drawn again below"
        shown.update(9, sps=2.0, episode_return=3.5)
    assert "[b]x: 9 / 1,000" in terminal.shown()
    assert sys.stderr is before


def test_80_columns_show_the_time_left(clock: Clock, terminal: Terminal) -> None:
    fcntl.ioctl(terminal.stream, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with Progress(10_000_000, stream=terminal.stream) as shown:
        shown.update(1_234_567, sps=2345.0, episode_return=-21.5)
        assert terminal.shown().split()[-5:] == ["2,345/s,", "return", "-21.5,", "1:02:17", "left"]


def test_a_dumb_terminal_gets_lines(clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Progress(10, stream=terminal.stream) as shown:
        shown.update(10, sps=1.0, episode_return=None)
    assert terminal.shown() == "train: 10 / 10 env steps (100%), 1/s\r\n"


def test_a_terminal_that_hangs_up_ends_the_display_only(clock: Clock, terminal: Terminal) -> None:
    before = sys.stderr
    with Progress(10, stream=terminal.stream) as shown:
        shown.update(1, sps=1.0, episode_return=None)
        terminal.hang_up()
        for step in range(2, 10):
            clock.now += 1
            shown.update(step, sps=1.0, episode_return=None)
        assert sys.stderr is before
        shown.say("x")


BROKEN = """
import os, sys
from fasta2c.run import progress
if sys.argv[1] == "live":
    sys.stderr.isatty = lambda: True
progress.PLAIN_SECONDS = progress.LIVE_SECONDS = 0.0
with progress.Progress(100) as shown:
    shown.update(1, sps=1.0, episode_return=None)
    os.read(0, 1)
    for step in range(2, 100):
        shown.update(step, sps=1.0, episode_return=None)
        shown.say("line")
print("trained")
"""


@pytest.mark.parametrize("kind", ["plain", "live"])
def test_a_broken_pipe_ends_neither_the_run_nor_its_exit_code(kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(progress.__file__).parents[2]), "TERM": "xterm"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", BROKEN, kind], env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    ) as child:
        assert child.stdin and child.stdout and child.stderr
        assert child.stderr.read(5)
        child.stderr.close()
        child.stdin.write(b"x")
        child.stdin.close()
        assert child.stdout.read() == b"trained\n"
        assert child.wait(20) == 0


def test_a_stream_that_can_only_write_is_no_terminal(monkeypatch):
    class Tee:
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    tee = Tee()
    monkeypatch.setattr(sys, "stderr", tee)
    with Progress(10) as progress:
        progress.update(10)
    assert "10 / 10" in tee.text
