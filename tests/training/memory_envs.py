"""An environment that cannot be solved without memory."""

import gymnasium
import numpy as np


class TMaze(gymnasium.Env):
    """A corridor of `length` cells whose end branches; only the first cell shows which branch pays 1, the other -1.

    Observes [the sign, or 0 beyond the first cell; whether the end is reached]. Actions: go on, left, right; before
    the end to turn is to stand still.
    """

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, length: int = 8):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sign, self.position = int(self.np_random.choice([-1, 1])), 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.sign if self.position == 0 else 0, self.position == self.length], np.float32)

    def step(self, action):
        if self.position < self.length:
            self.position += action == 0
            return self.observe(), -0.01 * float(action != 0), False, False, {}
        reward = 0.0 if action == 0 else 1.0 if (action == 1) == (self.sign == 1) else -1.0
        return self.observe(), reward, action != 0, False, {}


gymnasium.register("TMaze-v0", entry_point=TMaze, max_episode_steps=40)
