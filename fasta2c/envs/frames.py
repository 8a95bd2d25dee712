"""Frame stacking on the device: each frame is stored once, and stacks are gathered from where it lies.

Shapes: N frames kept, E environments, S frames a stack, K observations gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stack_frames(frames: Tensor, fills: Tensor, stack: int, rows: slice, envs: slice) -> Tensor:
    """Observations whose newest frames are `frames[rows.start + stack - 1]` and following, oldest frame first.

    A stack never reaches behind the frame that opened its game: earlier slots are copies of that frame.

    Args:
        frames: [N, E, ...] frames in time order, contiguous.
        fills: [N, E] bool, whether a frame opened a game.
        stack: S; observation k is made of frames k to k + S - 1.
        rows: observations wanted, as start and stop.
        envs: environments wanted, as start and stop.

    Returns:
        [rows * envs, S * C, ...] for frames of shape [C, ...]; a view if S is 1, else a copy.
    """
    count, width = frames.shape[0], frames.shape[1]
    if stack == 1:
        return frames[rows, envs].flatten(0, 1)
    device = frames.device
    slots = torch.arange(stack, device=device)
    windows_KES = fills.unfold(0, stack, 1)[rows, envs]
    opened_KE1 = (windows_KES * slots).amax(dim=-1, keepdim=True)
    row_K11 = torch.arange(count, device=device)[rows].view(-1, 1, 1)
    env_1E1 = torch.arange(width, device=device)[envs].view(1, -1, 1)
    sources_KES = (row_K11 + torch.maximum(slots, opened_KE1)) * width + env_1E1
    # Whole frames by a flat index: one memory copy a frame, on either device.
    flat = frames.view(count * width, -1).index_select(0, sources_KES.flatten())
    return flat.view(sources_KES.shape[0] * sources_KES.shape[1], stack * frames.shape[2], *frames.shape[3:])


class FrameWindow:
    """The last S frames of each environment, for whoever keeps no rollout.

    Args:
        num_envs: E.
        frame_shape: shape of one frame.
        stack: S.
        dtype: of the frames.
        device: where they are kept.
    """

    def __init__(
        self, num_envs: int, frame_shape: tuple[int, ...], stack: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._frames = torch.zeros((stack, num_envs, *frame_shape), dtype=dtype, device=device)
        self._fills = torch.zeros((stack, num_envs), dtype=torch.bool, device=device)
        self._stack = stack

    def push(self, frames: Tensor, first: Tensor) -> Tensor:
        """Add `frames` [E, ...], `first` [E] where one opens a game; returns observations [E, S * C, ...]."""
        self._frames = torch.cat([self._frames[1:], frames.unsqueeze(0)])
        self._fills = torch.cat([self._fills[1:], first.unsqueeze(0)])
        return stack_frames(self._frames, self._fills, self._stack, slice(0, 1), slice(0, frames.shape[0]))
