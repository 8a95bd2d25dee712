"""Gymnasium's vector environments behind the row contract (NEXT_STEP autoreset), in this process or in others."""

from __future__ import annotations

import math
import time
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from fasta2c import custom
from fasta2c.envs.base import HostEnvs, Row, pace
from fasta2c.envs.ids import EnvId
from fasta2c.envs.registry import maker
from fasta2c.envs.vector import Vector
from fasta2c.envs.workers import Patience
from fasta2c.errors import RunError, UserError, warn
from fasta2c.spaces import EnvSpec, spec_of

# How long environments in processes of their own may take to close, all of them together.
CLOSING_SECONDS = 30.0
# An environment that fails so often without a step in between is not made anew again.
FAILURES_IN_A_ROW = 3


class GymnasiumEnvs(HostEnvs):
    """`num_envs` environments of one Gymnasium id (`ID` or `module:ID`), stepped in lockstep.

    Args:
        env_id: an id of the Gymnasium backend.
        num_envs: E.
        seeds: one seed for each environment.
        options: keyword arguments for `gymnasium.make`, checked against the environment's constructor;
            `vectorization_mode`, "sync" (in this process) or "async" (each in its own), and `wrappers`, a list of
            "module:Class" or {"module:Class": {its keyword arguments}}, innermost first.
        timeout: seconds that those in processes of their own may take for a row; 0 waits for ever.
        restart: make an environment that fails anew, its game lost, rather than end the run.
        render: draw pictures when asked.

    Raises:
        UserError: an id Gymnasium does not know, an option the environment does not take, or spaces fasta2c does not.
    """

    def __init__(
        self,
        env_id: EnvId,
        num_envs: int,
        *,
        seeds: list[int],
        options: dict[str, Any],
        timeout: float = 0.0,
        restart: bool = False,
        render: bool = False,
    ) -> None:
        make = maker(env_id.backend_id, options, render=render)
        self.times_out = options.get("vectorization_mode") == "async"
        self.in_turn = not self.times_out
        self.num_envs = num_envs
        self.seeds = seeds
        self.options = dict(options)
        self.restarts = 0
        self._name = f"gymnasium:{env_id.backend_id}"
        self._timeout = timeout or math.inf
        self._restart = restart

        # Of a vector that has lost one of its environments Gymnasium gives back nothing: then each is one of its own.
        self._parts: list[Vector] = []
        try:
            for columns in [slice(e, e + 1) for e in range(num_envs)] if restart else [slice(0, num_envs)]:
                self._parts.append(Vector(make, columns, seeds[columns]))
        except custom.RAISED as error:  # the environment's own constructor can raise anything
            self.close()
            raise UserError(f"{self._name}: cannot be made: {custom.told(error)}") from None
        first = self._parts[0].envs
        self.action_space: gymnasium.Space[Any] = first.single_action_space
        self.spec: EnvSpec = spec_of(first.single_observation_space, self.action_space, env_id=self._name)
        self._layout = self.spec.frames
        self._action_dtype = np.dtype(self.action_space.dtype)
        self._previous_done = np.zeros(num_envs, dtype=np.bool_)
        self._last: NDArray[Any] | None = None

    def reset(self) -> NDArray[Any]:
        """Start every episode anew, from the seeds the first time; returns the first observations [E, ...]."""
        self._last = None
        for part in self._parts:
            part.begins = True
            part.send(np.zeros(0))
        self._previous_done = np.ones(self.num_envs, dtype=np.bool_)
        return self.receive().observations

    def send(self, actions: NDArray[Any]) -> None:
        """Send `actions` [E, *shape of one] to other processes; in this one they are kept until `receive`."""
        taken = self.spec.actions.within_bounds(actions.astype(self._action_dtype))
        for part in self._parts:
            part.send(taken[part.columns])

    def receive(self) -> Row:
        """What the actions that were sent brought.

        Where an environment has failed and is made anew, the row is none of its game: not valid, cut, its observation
        the one before.
        """
        patience = Patience(self._timeout)
        brought, lost = [], np.zeros(self.num_envs, dtype=np.bool_)
        for part in self._parts:
            columns = self._of(part, patience)
            if columns is None:
                assert self._last is not None
                lost[part.columns] = True
                columns = self._last[part.columns], np.zeros(1), np.zeros(1, bool), np.ones(1, bool)
            brought.append(columns)
        observations, scores, terminated, truncated = (
            columns[0] if len(columns) == 1 else np.concatenate(columns) for columns in zip(*brought, strict=True)
        )
        done = terminated | truncated
        row = Row(
            observations=observations,
            rewards=scores.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            valid=~self._previous_done & ~lost,
            opens=self._previous_done & ~lost,
            scores=scores,
            game_over=done & ~lost,
            lost=lost if lost.any() else None,
        )
        self._previous_done, self._last = done, observations
        return row

    @property
    def fps(self) -> float:
        """What the environment says, or 30."""
        return pace(self._parts[0].envs.metadata.get("render_fps"))

    def render(self) -> NDArray[np.uint8]:
        """Pictures [E, height, width, 3]; raises `UserError` where the environment draws none."""
        try:
            pictures = [np.asarray(picture) for part in self._parts for picture in part.envs.render() or [None]]
        except custom.RAISED as error:  # the environment can raise anything
            raise UserError(f"{self._name}: it cannot be drawn: {custom.told(error)}") from None
        for picture in pictures:
            if picture.shape == ():  # None
                raise UserError(f"{self._name}: it cannot be drawn, as it has no render mode rgb_array.")
            if picture.shape[2:] != (3,) or picture.shape != pictures[0].shape:
                raise UserError(
                    f"{self._name}: it cannot be drawn: pictures are to be [height, width, 3], all of one size, and "
                    f"one is {list(picture.shape)}."
                )
            if picture.dtype.kind not in "iu":
                raise UserError(
                    f"{self._name}: it cannot be drawn: pictures are to be uint8, and one is {picture.dtype}."
                )
        return np.stack(pictures).astype(np.uint8)

    def close(self) -> None:
        """Close every environment."""
        end = time.monotonic() + CLOSING_SECONDS
        for part in self._parts:
            part.close(max(end - time.monotonic(), 0.1))

    def _of(self, part: Vector, patience: Patience) -> tuple[NDArray[Any], ...] | None:
        """Observations (packed), scores, terminated and truncated of `part`; None where it failed and was made anew."""
        steps = not part.begins
        try:
            observations, *rest = part.receive(patience)
            # From processes of their own come numbers as the environment has them: arrays of one, or whole ones.
            told = (
                np.asarray(column, dtype).reshape(part.envs.num_envs)
                for column, dtype in zip(rest, (np.float64, np.bool_, np.bool_), strict=True)
            )
            row = (self._layout.pack(self._layout.flatten(observations)), *told)
            if steps:
                part.failures = 0
            return row
        except custom.RAISED as error:  # the environment can raise anything
            self._make_anew(part, error)
        if self._last is not None:
            return None
        part.send(np.zeros(0))  # there is no row before: it begins at once
        return self._of(part, Patience(self._timeout))

    def _make_anew(self, part: Vector, error: Exception | SystemExit) -> None:
        """Replace the environment of `part`, which failed with `error`; raises `RunError` where the run is to end."""
        told = f"{self._name}: {part.told(error, self._timeout)}".rstrip(".")
        if not self._restart or part.failures >= FAILURES_IN_A_ROW:
            part.abandon()
            again = f" It has failed {part.failures + 1} times in a row." if part.failures else ""
            raise RunError(f"{told}.{again}") from error
        warn(f"{told}; it is made anew{', its game is lost' if self._last is not None else ''}.")
        self.restarts += 1
        try:
            part.make_anew()
        except custom.RAISED as another:
            raise RunError(f"{told}, and cannot be made anew: {custom.told(another)}.") from another
