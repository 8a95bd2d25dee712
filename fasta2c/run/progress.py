"""How far a run has come, on the terminal: a live display, or plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

LIVE_SECONDS = 0.25
PLAIN_SECONDS = 5.0


class Progress:
    """Shows progress on `stream` (stderr unless given) inside a `with`; its failure ends the display, not the run.

    Args:
        total_steps: where the work ends.
        initial: where it starts, on a resume.
        description: what is being done.
        unit: what is counted.
        quiet: show nothing, `say` included.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        initial: int = 0,
        description: str = "train",
        unit: str = "env steps",
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._total, self._initial, self._done = total_steps, initial, initial
        self._description, self._unit = description, unit
        self._stream = None if quiet else stream or sys.stderr  # None too where the process was given no stderr
        self._display: Any = None
        self._rate = 0.0
        self._return: float | None = None
        self._started = time.monotonic()
        self._due = 0.0
        self._stale = False

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._due = self._started + PLAIN_SECONDS
        self._attempt(self._open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attempt(self._finish)
        self._stream = None

    def update(self, env_steps: int, *, sps: float | None = None, episode_return: float | None = None) -> None:
        """Note how far the work is, in units, and show it when it is time to; cheap enough to call at every update.

        Args:
            env_steps: units done since the very beginning.
            sps: units per second; reckoned from the clock if not given.
            episode_return: mean return lately, if there was an episode.
        """
        if self._stream is None:
            return
        now = time.monotonic()
        self._done, self._return, self._stale = env_steps, episode_return, True
        self._rate = sps if sps is not None else (env_steps - self._initial) / max(now - self._started, 1e-9)
        if now >= self._due:
            self._due = now + (PLAIN_SECONDS if self._display is None else LIVE_SECONDS)
            self._attempt(self._show)

    def say(self, line: str) -> None:
        """Print `line` above the display."""

        def show() -> None:
            if self._display is not None:
                self._display.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                self._print(line)

        self._attempt(show)

    def _open(self) -> None:
        assert self._stream is not None
        isatty = getattr(self._stream, "isatty", None)  # an object of somebody's own may only write
        if isatty is not None and isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            self._display = _open_display(self._stream, self._total)
            self._display.start()
            self._due = 0.0

    def _show(self) -> None:
        self._stale = False
        if self._display is not None:
            self._display.update(self._display.task_ids[0], completed=self._done, description=self._line())
            self._display.refresh()
        else:
            self._print(self._line())

    def _finish(self) -> None:
        if self._stale:
            self._show()
        if self._display is not None:
            self._display.stop()

    def _print(self, line: str) -> None:
        assert self._stream is not None
        self._stream.write(line + "\n")
        self._stream.flush()

    def _line(self) -> str:
        """`train: 51,200 / 1,000,000 env steps (5%), 2,400/s, return 21.5, 6:35 left`."""
        share = self._done / max(self._total, 1)
        rate = f"{self._rate:,.0f}" if self._rate >= 100 else f"{self._rate:.3g}"
        parts = [f"{self._description}: {self._done:,} / {self._total:,} {self._unit} ({share:.0%})"]
        if self._rate > 0:  # the first update tells no speed
            parts.append(f"{rate}/s")
        if self._return is not None:
            parts.append(f"return {self._return:.4g}")
        if self._rate > 0 and self._done < self._total:
            parts.append(f"{_clock((self._total - self._done) / self._rate)} left")
        return ", ".join(parts)

    def _attempt(self, show: Callable[[], None]) -> None:
        """Do `show` unless the display is off; turn it off if the stream is closed or its reader has gone."""
        if self._stream is None:
            return
        try:
            show()
        except (OSError, ValueError) as error:
            stream, self._stream = self._stream, None
            if self._display is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._display.stop()  # gives sys.stderr back before it draws
            if isinstance(error, BrokenPipeError):
                _drop(stream)


def _open_display(stream: TextIO, total: int) -> Any:
    """rich's live display; drawn by our own calls only, for in a thread of its own its errors could not be caught."""
    from rich import progress  # imported late: only a terminal needs it
    from rich.console import Console
    from rich.table import Column

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would end the process
            raise BrokenPipeError

    console = PipeConsole(file=stream, force_terminal=True)
    text = progress.TextColumn("{task.description}", markup=False, table_column=Column())  # wraps rather than is cut
    columns = (progress.BarColumn(bar_width=20), text) if console.width >= 110 else (text,)
    display = progress.Progress(*columns, console=console, auto_refresh=False, redirect_stdout=False)
    display.add_task("", total=max(total, 1))
    return display


def _drop(stream: TextIO) -> None:
    """Send what `stream` still buffers to nowhere, or Python would fail to flush it at exit and return 120."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _clock(seconds: float) -> str:
    """`6:35` or `2:06:35`."""
    minutes, second = divmod(int(min(seconds, 1e8)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
