"""What environments observe and take, brought to plain values that a network can be built from."""

from fasta2c.spaces.actions import Actions, Choices, Continuous
from fasta2c.spaces.layout import Layout, as_tensor, observation_space
from fasta2c.spaces.leaves import Leaf, observation_leaves
from fasta2c.spaces.spec import EnvSpec, spec_of

__all__ = [
    "Actions",
    "Choices",
    "Continuous",
    "EnvSpec",
    "Layout",
    "Leaf",
    "as_tensor",
    "observation_leaves",
    "observation_space",
    "spec_of",
]
