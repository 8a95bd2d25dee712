"""What a run needs in memory, and what is said where it is not there."""

import re

import pytest
import torch
from gymnasium.spaces import Box
from helpers import env_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from fasta2c import TrainConfig, accel, parts, train
from fasta2c.errors import RunError, UserError
from fasta2c.footprint import Needs, needs
from fasta2c.learning.learner import Learner
from fasta2c.models.actor_critic import ActorCritic
from fasta2c.rollout.buffer import RolloutBuffer, rollout_bytes
from fasta2c.spaces import spec_of

CPU = torch.device("cpu")
SPECS = [
    env_spec((3,), "float32"),
    env_spec((84, 84), "uint8", stack=4),
    spec_of(Box(-1, 1, (7,)), Box(-1, 1, (3,)), env_id="test"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("size", [(5, 4, 0), (1, 3, 16)])
def test_the_rollout_takes_what_is_said(spec, size):
    num_steps, num_envs, state = size
    buffer = RolloutBuffer(num_steps, num_envs, spec, CPU, state_size=state)
    tensors = [x for x in vars(buffer).values() if isinstance(x, torch.Tensor)]
    assert rollout_bytes(num_steps, num_envs, spec, state) == sum(x.nbytes for x in tensors)


@given(st.integers(1, 10**5), st.integers(1, 1000), st.integers(1, 10**5), st.integers(10**3, 10**11))
@settings(max_examples=300, deadline=None)
def test_what_is_said_to_fit_does_and_one_more_does_not(num_envs, num_steps, samples, free):
    spec = SPECS[1]

    def made(num_envs=num_envs, num_steps=num_steps, samples=samples):
        whole, shorter = (rollout_bytes(t, num_envs, spec) for t in (num_steps, num_steps - 1))
        return Needs(num_envs, num_steps, samples, whole - shorter, whole, 70_000, free)

    if made().fit:
        return
    said = str(made())
    for flag, name in (("--num-envs", "num_envs"), ("--num-steps", "num_steps"), ("--micro-batch", "samples")):
        if found := re.search(rf"{flag} ([\d,]+)", said):
            count = int(found[1].replace(",", ""))
            assert made(**{name: count}).fit and not made(**{name: count + 1}).fit
        else:
            assert not made(**{name: 1}).fit
    assert ("Take fewer of all" in said) == ("At most" not in said)


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_a_sample_takes_what_its_graph_keeps(recurrent):
    model = ActorCritic(SPECS[1], TrainConfig(encoder="nature-cnn", recurrent=recurrent))
    needed = needs(model, SPECS[1], 8, 4, samples=32)
    assert needed.fit
    # Four layers of activations; with the pixels as real numbers, twice, no more than 200,000 numbers.
    assert 4 * (20 * 20 * 32 + 9 * 9 * 64 + 7 * 7 * 64 + 512) <= needed.sample_bytes <= 4 * 200_000


def test_too_large_a_run_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(accel, "free_memory", lambda device: 4_400_000)
    wanted = TrainConfig(num_envs=64, num_steps=64, run_dir=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"out of memory: 64 environments of 64 rows take .* At most --num-envs \d+ or"):
        train(wanted)
    assert not (tmp_path / "run").exists()


def test_a_rollout_that_cannot_fit_is_refused_before_environments_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "make_env_groups", lambda *_, **__: pytest.fail("made"))
    wanted = TrainConfig(num_envs=10**7, num_steps=10**5, run_dir=tmp_path / "run", quiet=True)
    with pytest.raises(
        UserError, match=r"100,000 rows take [\d,.]+ GB and [\d.]+ GB are free. At most --num-envs [\d,]+"
    ):
        train(wanted)


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_a_network_that_cannot_fit_is_told_by_its_width(tmp_path, recurrent):
    wanted = TrainConfig(
        hidden_sizes=(4 * 10**6, 10**7) if recurrent == "none" else (64, 64),
        recurrent=recurrent,
        recurrent_size=10**7,
        run_dir=tmp_path / "run",
        quiet=True,
    )
    with pytest.raises(
        UserError, match="^out of memory: the network does not fit in what is free; take smaller --hidden-sizes"
    ):
        train(wanted)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
@pytest.mark.parametrize(
    ("free", "told"),
    [
        (10**12, r"do not fit. Try half of one: --micro-batch 512, --num-envs 8 or --num-steps 32"),
        (10**6, r"are free. At most --micro-batch \d+ would fit"),
    ],
)
def test_running_out_while_it_runs_is_told_in_words(tmp_path, monkeypatch, error, free, told):
    def update(*_):
        monkeypatch.setattr(accel, "free_memory", lambda device: free)
        raise error

    monkeypatch.setattr(Learner, "update", update)
    with pytest.raises(RunError, match=f"^out of memory: 16 environments of 64 rows .* micro-batch of 1,024.*{told}"):
        train(TrainConfig(run_dir=tmp_path / "run", quiet=True))
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_system_tells_how_much_is_free():
    assert 10**8 < accel.free_memory(CPU) <= 4 * accel.graph_budget(CPU)
