"""Action distributions: what can be drawn, how likely it was, and what the environment is told.

A distribution is made of P numbers a sample, `policy_BP`: logits, or means and log standard deviations. Drawn actions
are kept as they were drawn (the index of a joint choice, a number before it is clipped or squashed); `env_actions`
makes of them what the environment takes.
"""

from __future__ import annotations

from typing import Literal

from fasta2c.errors import UserError
from fasta2c.models.distributions.base import Distribution
from fasta2c.models.distributions.categorical import Categorical
from fasta2c.models.distributions.gaussian import Gaussian, StateDependentGaussian
from fasta2c.spaces import Actions, Choices

__all__ = ["Categorical", "Distribution", "Gaussian", "StateDependentGaussian", "build_distribution"]


def build_distribution(
    actions: Actions,
    *,
    bounds: Literal["clip", "squash"] = "clip",
    log_std: float = 0.0,
    state_dependent: int = 0,
) -> Distribution:
    """The distribution over `actions`.

    Args:
        actions: what is drawn.
        bounds: whether real numbers are clipped where these are, or squashed by tanh.
        log_std: what the logarithm of their standard deviations begins with.
        state_dependent: features that their exploration depends on (F); 0 if it depends on none.

    Raises:
        UserError: choices whose exploration should depend on the state.
    """
    if isinstance(actions, Choices):
        if state_dependent:
            raise UserError("sde: it is for real-valued actions; these are choices.")
        return Categorical(actions)
    if state_dependent:
        return StateDependentGaussian(actions, squash=bounds == "squash", log_std=log_std, features=state_dependent)
    return Gaussian(actions, squash=bounds == "squash", log_std=log_std)
