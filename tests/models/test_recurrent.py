"""Memory against torch's own layers between resets, and what must be forgotten."""

import pytest
import torch
from helpers import env_spec

from fasta2c.config import TrainConfig
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.models.recurrent import Memory

T, B, F, M = 6, 3, 4, 5


def layer_like(memory):
    """torch's layer over whole sequences with the cell's weights."""
    kind = torch.nn.GRU if isinstance(memory.cell, torch.nn.GRUCell) else torch.nn.LSTM
    layer = kind(F, M)
    layer.load_state_dict({f"{name}_l0": p for name, p in memory.cell.named_parameters()})
    return layer


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_without_resets_it_is_torchs_layer(kind):
    torch.manual_seed(0)
    memory = Memory(kind, F, M)
    features, hidden = torch.randn(T, B, F), torch.randn(1, B, M)
    carried = torch.randn(1, B, M)
    state = hidden[0] if kind == "gru" else torch.cat([hidden[0], carried[0]], dim=1)
    outputs, after = memory(features, state, torch.zeros(T, B, dtype=torch.bool))
    expected, end = layer_like(memory)(features, hidden if kind == "gru" else (hidden, carried))
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(after, end[0] if kind == "gru" else torch.cat([end[0][0], end[1][0]], dim=1))
    assert memory.state_size == after.shape[1]


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("poison", [1e6, torch.nan])
def test_a_game_remembers_nothing_of_the_one_before(kind, poison):
    """Outputs and gradients from an opening on are those of a fresh start, whatever was remembered."""
    torch.manual_seed(0)
    memory = Memory(kind, F, M)
    features, opens = torch.randn(T, B, F), torch.zeros(T, B, dtype=torch.bool)
    opens[0, 1] = opens[3, 1] = True
    state = torch.zeros(B, memory.state_size)
    state[1] = poison
    outputs, after = memory(features, state, opens)
    for rows in (slice(0, 3), slice(3, T)):
        fresh, fresh_after = memory(features[rows, 1:2], state[:1], torch.zeros_like(opens[rows, :1]))
        torch.testing.assert_close(outputs[rows, 1:2], fresh)
    torch.testing.assert_close(after[1:2], fresh_after)
    outputs.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in memory.parameters())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_rows_one_by_one_are_the_sequence(kind, shared):
    """What acting computes row by row is what the update computes of all rows at once."""
    torch.manual_seed(0)
    config = TrainConfig(recurrent=kind, recurrent_size=M, shared=shared)
    network = ActorCritic(env_spec((F,), "float32", actions=3), config)
    observations, opens = torch.randn(T, B, F), torch.rand(T, B) < 0.3
    start = torch.randn(B, network.state_size)
    policy, values, after = network.unroll(observations.flatten(0, 1), start, opens)
    state, rows = start, []
    for t in range(T):
        row_policy, row_values, state = network.unroll(observations[t], state, opens[t : t + 1])
        rows.append((row_policy, row_values))
    torch.testing.assert_close(torch.cat([p for p, _ in rows]), policy)
    torch.testing.assert_close(torch.cat([v for _, v in rows]), values)
    torch.testing.assert_close(state, after)
    parts = [*network.actor_parameters(), *network.critic_parameters()]
    assert {id(p) for p in parts} == {id(p) for p in network.parameters()} and len(parts) == len(set(map(id, parts)))


def test_gates_begin_orthogonal():
    for gate in Memory("lstm", F, M).cell.weight_hh.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(M), atol=1e-5, rtol=0)
