"""What a CUDA graph does, on a CPU: the tensor operations of one call, done again."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """Records every operation done inside, with its arguments and the tensors that it returned.

    As with a CUDA graph, a replay runs no Python: what was a number when it was recorded stays that number, and what it
    reads and writes are the tensors of that call. Unlike one, it computes while it records: the first replay has
    nothing left to do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replays = 0
        """That computed anything."""
        self._operations: list[tuple[Any, ...]] = []
        self._computed = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(func, args, kwargs or {}, result)
        return result

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Have a replay call `func`, and write what it returns into the tensors of `result`."""
        self._operations.append((func, args, kwargs, result))

    @torch.no_grad()
    def replay(self) -> None:
        if self._computed:
            self._computed = False
            return
        self.replays += 1
        for func, args, kwargs, result in self._operations:
            again = func(*args, **kwargs)
            if getattr(func, "namespace", "") == "c10d":  # what ranks do together is under way
                again[1].wait()
            for place, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, Tensor):
                    place.data.copy_(new)
