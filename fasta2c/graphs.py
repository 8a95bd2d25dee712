"""Work for a GPU as CUDA graphs: recorded once, and from then on launched as one.

A row's network has some forty kernels of a few microseconds each: launched singly, they take longer to launch than to
run. What is recorded is kernels and addresses, so work that is to be recorded keeps to these rules: its tensors are
where they were, it waits for nothing, and what changes between calls (a learning rate) is in a tensor on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from fasta2c.errors import PeerLost, RunError, is_out_of_memory, one_line

R = TypeVar("R")

# Calls before the one that is recorded: they compile kernels, choose convolutions and make the optimizer's state.
WARM_UP = 2


def warm_up_updates(device: torch.device) -> int:
    """Updates of a run until its speed is that of the rest: one compiles; on a GPU the last of three is recorded."""
    return WARM_UP + 1 if device.type == "cuda" else 1


class Graphs:
    """Makes functions that record themselves; all of one instance must be called in the same order every time.

    (They share one pool of memory for what they hold between their kernels, and so must not overlap either.)

    Args:
        device: where the work is done.
        enabled: if not, or on a CPU, every function is called as it is.
        generators: whose random numbers the work draws.
    """

    def __init__(
        self, device: torch.device, *, enabled: bool = True, generators: Sequence[torch.Generator] = ()
    ) -> None:
        self.enabled = enabled and device.type == "cuda"
        self._generators = generators
        self._stream = torch.cuda.Stream(device) if self.enabled else None
        self._pool: Any = torch.cuda.graph_pool_handle() if self.enabled else None
        self._made: list[_Recorded] = []

    def wrap(self, work: Callable[[], R]) -> Callable[[], R]:
        """`work`, launched as one from its third call on; its result is then overwritten by each call."""
        if not self.enabled:
            return work
        self._made.append(_Recorded(self, work))
        return self._made[-1]

    def release(self) -> None:
        """Let go of what was recorded, which cannot be called any more: NCCL's connections end after it, not before."""
        for recorded in self._made:
            recorded.release()

    def warm_up(self, work: Callable[[], R]) -> R:
        """Call `work` on the stream that it will be recorded on: gradients remember where they were first made."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], R]) -> tuple[Callable[[], None], R]:
        """What replays `work`, and where its result will be. Nothing is computed yet.

        Raises:
            RunError: it cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        before = torch.cuda.current_stream()
        try:
            # Other threads (TensorBoard's, EnvPool's) may do as they like meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
        except (RuntimeError, RunError) as error:
            # To end a recording that has failed is an error as well, which says nothing of the first, and after which
            # torch stays on the stream that was recorded.
            torch.cuda.set_stream(before)
            first = error
            if isinstance(error, RuntimeError) and isinstance(error.__context__, RuntimeError | RunError):
                first = error.__context__
            if isinstance(first, PeerLost) or is_out_of_memory(first):
                raise first from None
            raise RunError(
                f"a GPU's work could not be recorded as a CUDA graph: {one_line(first)}. A network that waits for the "
                "GPU, or whose work depends on numbers there, trains with --no-cuda-graphs."
            ) from first
        return graph.replay, result


class _Recorded:
    """One function: called, called, recorded, replayed."""

    def __init__(self, graphs: Graphs, work: Callable[[], R]) -> None:
        self._graphs = graphs
        self._work = work
        self._calls = 0
        self._replay: Callable[[], None] | None = None
        self._result: Any = None

    def release(self) -> None:
        """Let go of the graph and of what it has computed."""
        self._replay, self._result = _released, None

    def __call__(self) -> Any:
        if self._replay is None and self._calls < WARM_UP:
            self._calls += 1
            return self._graphs.warm_up(self._work)
        if self._replay is None:
            self._replay, self._result = self._graphs.record(self._work)
        self._replay()
        return self._result


def _released() -> None:
    raise RuntimeError("This was recorded, and has been released.")
