"""Evaluation plays whole, unclipped games and favours none for being short."""

import types

import numpy as np
import pytest
import torch

from fasta2c import TrainConfig, evaluate, train
from fasta2c.errors import UserError
from fasta2c.evaluation import eval_envs, play

CPU = torch.device("cpu")


class Games:
    """Environment e plays games of length e + 1 (and a reset row after each), scoring 10 a step."""

    num_envs = 4

    def reset(self):
        self.step_in_game = torch.zeros(4, dtype=torch.int64)
        return torch.zeros(4, 1)

    def step(self, actions):
        lengths = torch.arange(4) + 1
        valid = self.step_in_game < lengths
        over = valid & (self.step_in_game + 1 == lengths)
        self.step_in_game = torch.where(valid, self.step_in_game + 1, 0)
        score = torch.where(valid, 10.0, 1e6)  # a reset row's score is poison
        none = torch.zeros(4)
        infos = {"valid": valid, "score": score, "game_over": over, "opens": ~valid}
        return torch.zeros(4, 1), none, over, over, infos


class Idle:
    def act(self, observations, *, greedy=False, opens=None):
        return torch.zeros(len(observations), dtype=torch.int64)


def test_the_policy_is_told_where_games_open():
    told = []

    class Noting(Idle):
        def act(self, observations, *, greedy=False, opens=None):
            told.append(opens.tolist())
            return super().act(observations)

    play(Noting(), Games(), 4)
    assert told[:4] == [[True] * 4, [False] * 4, [True, False, False, False], [False, True, False, False]]


def test_every_environment_plays_a_fixed_share():
    """Eight games of four environments: two each. Taking the first eight to end would give 1.5 for the length."""
    result = play(Idle(), Games(), 8)
    assert result.episodes == 8
    assert result.mean_length == 2.5 and result.mean_return == 25.0
    assert (result.min_return, result.max_return) == (10.0, 40.0)
    assert result.std_return == pytest.approx(np.std([10, 20, 30, 40]))


def test_a_remainder_goes_to_the_first_environments():
    assert play(Idle(), Games(), 5).mean_length == pytest.approx((1 + 2 + 3 + 4 + 1) / 5)


def test_scores_are_unclipped_whole_games():
    """SpaceInvaders by a random policy scores over a hundred a game; clipped or by lives it would be below thirty."""
    training = {"reward_clip": True, "episodic_life": True, "max_episode_steps": 900}

    class Random:
        generator = torch.Generator().manual_seed(0)

        def act(self, observations, *, greedy=False, opens=None):
            return torch.randint(0, 6, (8,), generator=self.generator)

    with eval_envs(TrainConfig(env="Atari/SpaceInvaders", env_kwargs=training), 8, CPU) as envs:
        assert "reward_clip" not in envs.options and envs.options["max_episode_steps"] == 900
        assert play(Random(), envs, 8).mean_return > 60


def test_evaluation_is_reproducible_and_seeded(tmp_path):
    run = train(TrainConfig(num_envs=4, num_steps=4, total_steps=200, run_dir=tmp_path / "run", quiet=True))
    one, again, other = (evaluate(run.run_dir, episodes=20, device="cpu", seed=s) for s in (1, 1, 2))
    assert one == again and one != other and one.episodes == 20
    assert one.mean_length == one.mean_return  # CartPole pays one a step
    assert evaluate(run.run_dir, episodes=3, checkpoint="best", greedy=True).episodes == 3


def test_the_interval_is_of_the_mean(tmp_path):
    result = play(Idle(), Games(), 8)
    assert 10 < result.low_return < result.mean_return < result.high_return < 40
    assert play(Idle(), Games(), 1).low_return is None


def test_options_are_laid_over_those_of_the_run(tmp_path):
    kwargs = {"max_episode_steps": 30}
    run = train(
        TrainConfig(
            env="MountainCar-v0",
            num_envs=4,
            num_steps=4,
            total_steps=64,
            env_kwargs=kwargs,
            run_dir=tmp_path / "run",
            quiet=True,
        )
    ).run_dir
    assert evaluate(run, episodes=2).mean_length == 30
    assert evaluate(run, episodes=2, env_kwargs={"max_episode_steps": 12}).mean_length == 12
    with pytest.raises(UserError, match="env_kwargs.max_steps: MountainCar-v0 has no such option"):
        evaluate(run, episodes=2, env_kwargs={"max_steps": 12})


def test_options_that_change_what_is_observed_are_refused(tmp_path):
    run = train(
        TrainConfig(
            env="Atari/Pong",
            num_envs=1,
            num_steps=2,
            total_steps=2,
            run_dir=tmp_path / "run",
            quiet=True,
            encoder="small-cnn",
        )
    ).run_dir
    with pytest.raises(UserError, match="env_kwargs: the policy was trained with other observations or actions"):
        evaluate(run, episodes=1, env_kwargs={"img_height": 64})


@pytest.mark.parametrize(
    "wrong",
    [
        {"episodes": 0}, {"episodes": "5"}, {"episodes": 2.5}, {"num_envs": "a"}, {"num_envs": 0}, {"seed": -1},
        {"seed": 2**70}, {"env_kwargs": [1]}, {"device": "tpu"},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path, wrong):
    if "device" in wrong:
        train(TrainConfig(num_envs=2, total_steps=32, quiet=True, run_dir=tmp_path / "run"))
    with pytest.raises(UserError, match=f"^{next(iter(wrong))}: "):
        evaluate(tmp_path / "run", **wrong)


def test_numpys_numbers_and_any_mapping_are_taken(tmp_path):
    run = train(TrainConfig(num_envs=2, total_steps=32, quiet=True, run_dir=tmp_path / "run")).run_dir
    options = types.MappingProxyType({"max_episode_steps": 9})
    assert evaluate(run, episodes=np.int64(2), seed=np.uint32(7), env_kwargs=options).mean_length <= 9


def test_the_runs_own_seed_is_meant_where_none_is_given(tmp_path):
    run = train(TrainConfig(seed=3, num_envs=2, total_steps=32, quiet=True, run_dir=tmp_path / "run")).run_dir
    own, given, other = (evaluate(run, episodes=20, device="cpu", seed=seed).mean_return for seed in (None, 3, 0))
    assert own == given != other


def test_scores_that_are_not_finite_are_told_as_they_are(recwarn):
    class Lost(Games):
        def step(self, actions):
            *row, infos = super().step(actions)
            return *row, {**infos, "score": torch.tensor([torch.inf, -torch.inf, 1.0, 1.0])}

    result = play(Idle(), Lost(), 8)
    assert np.isnan(result.mean_return) and np.isnan(result.std_return) and result.low_return is None and not recwarn
    assert (result.min_return, result.max_return) == (-np.inf, np.inf)
