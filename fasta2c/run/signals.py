"""Signals that ask a run to stop: noted here, acted on where the run can save itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalWatch:
    """Inside this context SIGINT, SIGTERM and SIGHUP only set `received`; a second SIGINT ends the process at once.

    Does nothing outside the main thread, where Python allows no handlers.

    Args:
        patience: seconds in which Python must come to hear of a signal, or the process ends; 0 waits for ever. It does
            not hear while it waits for a GPU, and that for another rank which has gone.
    """

    def __init__(self, *, patience: float = 0.0) -> None:
        self.received: int | None = None
        """The first signal caught, None until then."""
        self._patience = patience
        self._heard = threading.Event()
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._wakeup_before = -1
        self._interrupts = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            if self._patience > 0:
                self._sockets = socket.socketpair()
                self._sockets[1].setblocking(False)
                self._wakeup_before = signal.set_wakeup_fd(self._sockets[1].fileno(), warn_on_full_buffer=False)
                threading.Thread(target=self._listen, name="fasta2c signals", daemon=True).start()
            for signum in WATCHED:
                previous = signal.getsignal(signum)
                if signum == signal.SIGHUP and previous == signal.SIG_IGN:
                    continue  # started by nohup: a closed terminal must not end the run
                signal.signal(signum, self._note)
                self._previous[signum] = previous
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._previous:
            signum, previous = self._previous.popitem()
            # None: a handler that was not set from Python, and cannot be from here.
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
        if self._sockets is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            self._sockets[1].close()  # which ends the thread
            self._sockets = None

    def _listen(self) -> None:
        """End the process where a signal has come and Python does not hear of it."""
        assert self._sockets is not None
        with self._sockets[0] as arrivals:
            while arrived := arrivals.recv(1):
                if arrived[0] in WATCHED and not self._heard.wait(self._patience):
                    leave(128 + arrived[0])

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._heard.set()
        if self.received is None:
            self.received = signum
        if signum == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                leave(128 + signum)  # not an exception, which code below could hold up or swallow


def leave(code: int) -> NoReturn:
    """End the process at once with exit code `code`, and with it the processes of its environments."""
    for process in multiprocessing.active_children():
        process.kill()  # one that hangs would hear of nothing else
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")  # the progress display hides the cursor
    os._exit(code)
