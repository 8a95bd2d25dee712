"""Training speed beside Stable-Baselines3's A2C, in alternating runs of a process each.

Both train plain A2C on the same EnvPool games: SB3 through a small adapter, with 16 environments, five rows and, on
Atari, RL-Zoo's hyperparameters (elsewhere SB3's defaults) unless told otherwise; fasta2c with one RMSprop step a
rollout and its preset's network, E and T as given. Warm-up is left out; env steps count
neither side's reset rows. The figure is the ratio of medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from common import PLAIN_A2C, hardware, positive_seconds, rate, spread, turns, with_preset, write_json

from fasta2c import accel
from fasta2c.envs.base import spread_seeds
from fasta2c.envs.ids import resolve
from fasta2c.errors import Fasta2cError, UserError
from fasta2c.parts import assemble, make_envs
from fasta2c.run.provenance import versions


def fasta2c_sps(env: str, num_envs: int, num_steps: int | None, seconds: float) -> float:
    """Env steps a second of collect and update, as the trainer calls them."""
    given: dict[str, Any] = {"env": env, "num_envs": num_envs}
    config = with_preset(**PLAIN_A2C, **given, **({"num_steps": num_steps} if num_steps else {}))
    device = accel.resolve_device(config.device)
    parts = assemble(config, make_envs(config, device), device)

    def work() -> int:
        before = parts.collector.counts.env_steps
        parts.learner.update(parts.collector.collect(), 0.0)
        return parts.collector.counts.env_steps - before

    for _ in range(3):
        work()
    return rate(work, seconds, device)


def sb3_sps(env: str, num_envs: int, seconds: float) -> float:
    """Env steps a second of `A2C.learn` over EnvPool, its first updates left out."""
    import envpool
    import numpy as np
    from stable_baselines3 import A2C
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
    from stable_baselines3.common.vec_env import VecEnv

    env_id = resolve(env)
    atari = env_id.family == "Atari"
    options: dict[str, Any] = {"reward_clip": True, "episodic_life": True, "stack_num": 4} if atari else {}
    warnings.filterwarnings("ignore", message=".*precision lowered.*")
    pool: Any = envpool.make_gymnasium(env_id.backend_id, num_envs=num_envs, seed=spread_seeds(0, num_envs), **options)

    class Adapter(VecEnv):
        """EnvPool as SB3 wants it: a done environment is reset within the step, its last observation in infos."""

        def __init__(self) -> None:
            super().__init__(num_envs, pool.observation_space, pool.action_space)

        def reset(self) -> Any:
            return pool.reset()[0]

        def step_async(self, actions: Any) -> None:
            self._actions = actions

        def step_wait(self) -> Any:
            observations, rewards, terminated, truncated, _ = pool.step(self._actions)
            dones = terminated | truncated
            infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]
            ended = np.flatnonzero(dones).astype(np.int32)
            if len(ended):
                for e in ended:
                    infos[e] = {"terminal_observation": observations[e], "TimeLimit.truncated": bool(truncated[e])}
                fresh = pool.reset(ended)[0]
                observations = observations.copy()
                observations[ended] = fresh
            return observations, rewards, dones, infos

        def close(self) -> None:
            pool.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * num_envs

    class Clock(BaseCallback):
        """Starts after some warm-up and stops `learn` when the time is over."""

        started = 0.0
        steps_then = 0
        sps = 0.0

        def _on_step(self) -> bool:
            if self.started and time.perf_counter() - self.started >= seconds and self.n_calls % 5 == 0:
                self.sps = (self.num_timesteps - self.steps_then) / (time.perf_counter() - self.started)
                return False
            if not self.started and self.n_calls >= 50:
                self.started, self.steps_then = time.perf_counter(), self.num_timesteps
            return True

    zoo: dict[str, Any] = {}
    if atari:
        zoo = {"ent_coef": 0.01, "vf_coef": 0.25}
    policy_kwargs = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
    model = A2C("CnnPolicy" if atari else "MlpPolicy", Adapter(), policy_kwargs=policy_kwargs, device="auto", **zoo)
    clock = Clock()
    model.learn(10**9, callback=clock)
    return clock.sps


def main() -> int:
    """Alternate the two, print the ratio, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Atari/Pong")
    parser.add_argument("--num-envs", type=int, default=256, help="E of fasta2c (default: %(default)s)")
    parser.add_argument("--num-steps", type=int, help="T of fasta2c (default: 8 on Atari, else the preset's)")
    parser.add_argument("--sb3-envs", type=int, default=16, help="environments of SB3 (default: %(default)s)")
    parser.add_argument("--seconds", type=positive_seconds, default=20.0, help="of each run (default: %(default)s)")
    parser.add_argument("--repeats", type=turns, default=5, help="runs of each side (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--side", choices=("fasta2c", "sb3"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.side == "fasta2c":
            print(fasta2c_sps(args.env, args.num_envs, args.num_steps, args.seconds))
            return 0
        if args.side == "sb3":
            print(sb3_sps(args.env, args.sb3_envs, args.seconds))
            return 0
        if importlib.util.find_spec("stable_baselines3") is None:
            raise UserError("stable-baselines3 is not installed; pip install -c constraints.txt '.[sb3]'")
        if args.num_steps is None and resolve(args.env).family == "Atari":
            args.num_steps = 8
        return compare(args)
    except Fasta2cError as error:
        print(f"compare_sb3.py: error: {error}", file=sys.stderr)
        return error.exit_code


def compare(args: argparse.Namespace) -> int:
    """Run the sides in turns, each in a process of its own, so that neither inherits the other's threads."""
    found: dict[str, list[float]] = {"fasta2c": [], "sb3": []}
    command = [sys.executable, __file__, "--env", args.env, "--num-envs", str(args.num_envs)]
    command += ["--sb3-envs", str(args.sb3_envs), "--seconds", str(args.seconds)]
    command += ["--num-steps", str(args.num_steps)] if args.num_steps else []
    for n in range(args.repeats):
        for side, values in found.items():
            # fasta2c tells OpenMP how long to spin; SB3 leaves it at GNU's default, and so do we for its side.
            environment = os.environ | ({"GOMP_SPINCOUNT": "300000"} if side == "sb3" else {})
            done = subprocess.run(
                [*command, "--side", side], stdout=subprocess.PIPE, text=True, check=True, env=environment
            )
            values.append(float(done.stdout.split()[-1]))
        ratio = found["fasta2c"][-1] / found["sb3"][-1]
        line = f"fasta2c {found['fasta2c'][-1]:,.0f}, sb3 {found['sb3'][-1]:,.0f} env steps/s, ratio {ratio:.2f}"
        print(f"{n + 1}/{args.repeats}: {line}", file=sys.stderr)
    import torch

    ratios = [a / b for a, b in zip(found["fasta2c"], found["sb3"], strict=True)]
    result = {
        "ratio_of_medians": statistics.median(found["fasta2c"]) / statistics.median(found["sb3"]),
        "ratio_spread": spread(ratios),
        "fasta2c_sps": spread(found["fasta2c"]),
        "sb3_sps": spread(found["sb3"]),
        "settings": {k: v for k, v in vars(args).items() if k not in ("json", "side")},
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "versions": {**versions(), "stable-baselines3": _sb3_version()},
    }
    print(json.dumps({k: result[k] for k in ("ratio_of_medians", "fasta2c_sps", "sb3_sps")}, indent=2))
    write_json(args.json, result)
    return 0


def _sb3_version() -> str:
    from importlib.metadata import version

    return version("stable-baselines3")


if __name__ == "__main__":
    sys.exit(main())
