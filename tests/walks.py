"""An environment of tensors that can be saved, imported by `torch:walks:Walk` as a user's own would be."""

import random

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete


class Walk:
    """A random walk that ends 5 away from where it began, drawn from generators of every kind; it can be saved."""

    observation_space = Box(-np.inf, np.inf, (2,))
    action_space = Discrete(3)

    def __init__(self, num_envs, *, device, seed):
        self.generator = torch.Generator().manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.at = torch.zeros(num_envs)
        self.over = torch.zeros(num_envs, dtype=torch.bool)

    def observe(self):
        return torch.stack([self.at, self.at.abs()], dim=1)

    def reset(self):
        self.at.zero_()
        return self.observe()

    def step(self, actions):
        noise = (
            torch.randn(len(self.at), generator=self.generator) + torch.rand(()) + np.random.rand() + random.random()
        )
        self.at = torch.where(self.over, 0.0, self.at + actions - 1 + noise - 1.5)
        rewards = torch.where(self.over, 0.0, 1.0)
        self.over = ~self.over & (self.at.abs() > 5)
        return self.observe(), rewards, self.over, torch.zeros_like(self.over)

    def state_dict(self):
        return {"at": self.at, "over": self.over, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.at, self.over = state["at"], state["over"]
        self.generator.set_state(state["generator"])
