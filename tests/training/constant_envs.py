"""Environments whose values are known: imported by `gymnasium:constant_envs:...` as a user's own would be."""

import gymnasium
import numpy as np


class Constant(gymnasium.Env):
    """Pays 1 a step whatever is done; ends by its own rules after `length` steps, or never."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int = 0):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.ones(2, np.float32), 1.0, self.steps == self.length, False, {}


class Identity(gymnasium.Env):
    """Shows one of four symbols and pays 1 for naming it; ten symbols an episode."""

    observation_space = gymnasium.spaces.Box(0, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.show(), {}

    def show(self):
        self.symbol = int(self.np_random.integers(4))
        return np.eye(4, dtype=np.float32)[self.symbol]

    def step(self, action):
        reward = float(action == self.symbol)
        self.steps += 1
        return self.show(), reward, self.steps == 10, False, {}


gymnasium.register("OneStep-v0", entry_point=Constant, kwargs={"length": 1})
gymnasium.register("Endless-v0", entry_point=Constant, max_episode_steps=10)
gymnasium.register("Identity-v0", entry_point=Identity)
