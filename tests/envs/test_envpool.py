"""The facts about EnvPool that the row contract rests on, each checked on the installed wheel."""

from pathlib import Path

import envpool
import numpy as np
import pytest
import torch
from gymnasium.vector.utils import batch_space

from fasta2c.envs.base import spread_seeds
from fasta2c.envs.envpool import EnvPoolEnvs
from fasta2c.envs.episodes import EpisodeStatistics
from fasta2c.envs.ids import resolve
from fasta2c.envs.make import look_up_spec
from fasta2c.errors import UserError


def make(env_id, num_envs, seed=0, num_threads=2, **options):
    return EnvPoolEnvs(
        resolve(env_id), num_envs, seeds=spread_seeds(seed, num_envs), options=options, num_threads=num_threads
    )


def walk(envs, steps, seed=0):
    """Rows of `steps` random actions."""
    rng = np.random.default_rng(seed)
    envs.reset()
    for _ in range(steps):
        yield envs.step(rng.integers(0, envs.action_space.n, envs.num_envs))


def test_a_done_is_followed_by_one_reset_row_that_pays_nothing_and_opens_a_game():
    previous_done = np.zeros(8, bool)
    resets = 0
    for row in walk(make("CartPole-v1", 8), 200):
        assert (row.valid == ~previous_done).all()
        assert (row.rewards[previous_done] == 0).all()
        assert (np.abs(row.observations[previous_done]) <= 0.05).all()  # where CartPole's episodes begin
        assert not (row.terminated | row.truncated)[previous_done].any()
        previous_done = row.terminated | row.truncated
        resets += np.count_nonzero(~row.valid)
    assert resets > 20


def test_a_reset_row_ignores_its_action():
    def after_reset(action):
        envs = make("CartPole-v1", 1, seed=3)
        done = False
        envs.reset()
        while not done:
            row = envs.step(np.array([1]))
            done = row.terminated[0]
        return envs.step(np.array([action])).observations

    assert np.array_equal(after_reset(0), after_reset(1))


def test_a_done_row_holds_the_true_last_observation():
    """CartPole ends where its last observation says it must, not at the next episode's first one."""
    ends = 0
    for row in walk(make("CartPole-v1", 16), 200):
        x, _, theta, _ = row.observations[row.terminated].T
        assert ((np.abs(x) > 2.4) | (np.abs(theta) > 12 * np.pi / 180)).all()
        ends += len(x)
    assert ends > 50


def test_a_time_limit_is_truncated_not_terminated():
    rows = list(walk(make("CartPole-v1", 4, max_episode_steps=5), 12))
    assert rows[4].truncated.all() and not rows[4].terminated.any()
    assert not rows[5].valid.any() and rows[10].truncated.all()


LIMITED = [
    "CartPole-v1",
    "LunarLander-v3",
    "MiniGrid-Empty-5x5-v0",
    "FrozenLake-v1",
    "Taxi-v3",
    "NChain-v0",
    "Sokoban-v0",
]
LIMITLESS = ["Highway-v0", "LaneKeeping-v0", "Maze-v0", "SlidingTilePuzzle-v0", "Play2048-v1", "CoinrunEasy-v0"]
LIMITLESS += ["Blackjack-v1", "Catch-v0", "CliffWalking-v1", "tabular/CliffWalking-v0"]


@pytest.mark.parametrize("env_id", [*LIMITED, *LIMITLESS])
def test_a_limit_that_envpool_does_not_keep_is_refused(env_id):
    """Blackjack is over within five steps: any that takes a second has not been cut."""
    limit = 1 if env_id == "Blackjack-v1" else 3
    if env_id in LIMITED:
        rows = list(walk(make(env_id, 4, max_episode_steps=limit), limit))
        assert rows[-1].truncated.any() and (rows[-1].truncated | rows[-1].terminated).sum() >= 2
        return
    with pytest.raises(UserError, match="env_kwargs.max_episode_steps: .* does not keep to it"):
        make(env_id, 4, max_episode_steps=limit)
    options = {"base_path": str(Path(envpool.__file__).parent)} if resolve(env_id).family == "Jumanji" else {}
    raw = envpool.make(env_id, env_type="gymnasium", num_envs=16, seed=1, max_episode_steps=limit, **options)
    raw.reset()
    actions = batch_space(raw.action_space, 16)
    actions.seed(1)
    infos = [raw.step(actions.sample())[-1] for _ in range(12)]
    assert max(info["elapsed_step"].max() for info in infos) > limit


def test_an_end_after_a_limit_that_is_not_kept_is_no_cut(monkeypatch):
    """Jumanji's 2048 says 1,000 steps and goes on; EnvPool would have its later ends bootstrapped from."""
    monkeypatch.setattr("fasta2c.envs.envpool._check_options", lambda *_: None)
    rows = list(walk(make("Catch-v0", 8, max_episode_steps=5), 20))
    assert not any(row.truncated.any() for row in rows)
    assert [t for t, row in enumerate(rows) if row.terminated.all()] == [8, 18]


def test_a_game_over_on_the_time_limit_is_terminated_and_truncated():
    """EnvPool alone says truncated only, and a value would be bootstrapped from a finished game."""
    both = cuts = 0
    for row in walk(make("Breakout-v5", 64, max_episode_steps=130, noop_max=1), 500):
        cuts += np.count_nonzero(row.truncated)
        both += np.count_nonzero(row.truncated & row.terminated)
        assert (row.game_over == (row.terminated | row.truncated)).all()
    assert cuts > 100 and 0 < both < cuts / 5


def test_a_lost_life_ends_an_episode_but_not_the_game():
    envs = make("Breakout-v5", 8, episodic_life=True)
    lives_lost = games = 0
    previous_done = np.zeros(8, bool)
    for row in walk(envs, 600):
        lost = row.terminated & ~row.game_over
        lives_lost += np.count_nonzero(lost)
        games += np.count_nonzero(row.game_over)
        assert (row.valid == ~previous_done).all()
        previous_done = row.terminated | row.truncated
    # five lives: four lost in a game before the one that ends it
    assert games >= 3 and 3.5 * games < lives_lost < 4.5 * games + 5 * 8


def test_a_lost_life_does_not_open_a_game():
    envs = make("Breakout-v5", 8, episodic_life=True)
    after_life = after_game = 0
    lost = over = np.zeros(8, bool)
    for row in walk(envs, 600):
        assert not row.opens[lost].any() and row.opens[over].all()
        assert not row.opens[row.valid].any()
        after_life += np.count_nonzero(lost)
        after_game += np.count_nonzero(over)
        lost, over = row.terminated & ~row.game_over, row.game_over
    assert after_life > 10 and after_game > 2


@pytest.mark.parametrize("episodic_life", [False, True])
def test_scores_are_the_games_own_however_rewards_are_clipped(episodic_life):
    """Seven points for a brick of SpaceInvaders' higher rows stay seven points, summed over whole games."""
    envs = make("SpaceInvaders-v5", 8, reward_clip=True, episodic_life=episodic_life)
    statistics = EpisodeStatistics(8)
    by_hand, finished = np.zeros(8), []
    for row in walk(envs, 700):
        assert set(np.unique(row.rewards)) <= {0.0, 1.0}
        statistics.record(statistics.update(row.valid, row.scores, row.game_over))
        by_hand += row.scores
        for e in np.flatnonzero(row.game_over):
            finished.append(by_hand[e])
            by_hand[e] = 0
    assert statistics.count == len(finished) > 3
    assert statistics.mean_return == pytest.approx(np.mean(finished[-100:]))
    assert statistics.mean_return > 20


def test_neighbouring_seeds_share_no_environment():
    seeds = [set(spread_seeds(s, 4096)) for s in range(4)]
    assert all(len(a & b) < 3 for i, a in enumerate(seeds) for b in seeds[:i])
    assert all(0 <= s < 2**31 for s in seeds[0])
    assert not set(spread_seeds(0, 64)) & set(spread_seeds(0, 64, stream=1))


def test_the_pool_uses_the_seeds_it_is_given():
    first = make("CartPole-v1", 4, seed=0).reset()
    again = make("CartPole-v1", 4, seed=0).reset()
    other = make("CartPole-v1", 4, seed=1).reset()
    assert np.array_equal(first, again) and not np.isclose(first, other).all(axis=1).any()
    assert len(np.unique(first, axis=0)) == 4


def test_trajectories_do_not_depend_on_the_number_of_threads():
    for a, b in zip(
        walk(make("Pong-v5", 5, num_threads=1), 40), walk(make("Pong-v5", 5, num_threads=3), 40), strict=True
    ):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_arrays_are_the_receivers_to_keep():
    envs = make("CartPole-v1", 4)
    envs.reset()
    kept = envs.step(np.zeros(4, np.int64))
    copy = [np.copy(x) for x in kept]
    for _ in range(50):
        envs.step(np.ones(4, np.int64))
    assert all(np.array_equal(a, b) for a, b in zip(kept, copy, strict=True))


def test_rows_come_in_the_order_of_the_environments():
    """Each environment of a seed is where it is when it is stepped alone."""
    together = make("CartPole-v1", 6, num_threads=3)
    alone = [EnvPoolEnvs(resolve("CartPole-v1"), 1, seeds=[seed], options={}, num_threads=1) for seed in together.seeds]
    together.reset()
    for e in alone:
        e.reset()
    for _ in range(30):
        row = together.step(np.ones(6, np.int64))
        expected = np.concatenate([e.step(np.ones(1, np.int64)).observations for e in alone])
        assert np.array_equal(row.observations, expected)


def test_atari_defaults_are_noframeskip_v4():
    config = envpool.make_spec("Pong-v5").config
    expected = {"repeat_action_probability": 0.0, "frame_skip": 4, "max_episode_steps": 27_000, "noop_max": 30}
    expected |= {"use_fire_reset": True, "episodic_life": False, "reward_clip": False}
    assert {k: getattr(config, k) for k in expected} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_skp": 4}, "frame_skip"),
        ({"num_envs": 3}, "--num-envs"),
        ({"frame_skip": "four"}, "expected a value like 4"),
        ({"frame_skip": True}, "expected a value like 4"),
        ({"frame_skip": 0}, "from 1 to"),
        ({"stack_num": -1}, "from 1 to"),
        ({"max_episode_steps": 0}, "from 1 to"),
        ({"repeat_action_probability": 1.5}, "from 0 to 1"),
        ({"mode": 2**40}, "out of range"),
        ({"mode": 99}, "Invalid game mode"),
        ({"episodic_life": 1}, "expected a value like False"),
        ({"zero_discount_on_life_loss": True}, "by episodic_life here"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(UserError, match=message):
        EnvPoolEnvs(resolve("Pong-v5"), 2, seeds=[1, 2], options=options)


def test_options_reach_the_environment():
    assert make("Pong-v5", 2, full_action_space=True).action_space.n == 18
    assert make("Pong-v5", 2, stack_num=2).spec.layout.shape == (2, 84, 84)
    assert make("Pong-v5", 2, img_height=64, gray_scale=False).spec.frames.shape == (3, 64, 84)
    fast = list(walk(make("Pong-v5", 2, frame_skip=2, max_episode_steps=6), 7))
    assert fast[5].truncated.all() and not fast[6].valid.any()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Go9x9-v1", "several players"),
        ("IntersectionMultiAgent-v0", "several players"),
        ("VizdoomCustom-v1", "cfg_path"),
    ],
)
def test_what_cannot_train_is_told_in_words(env_id, message):
    with pytest.raises(UserError, match=message):
        make(env_id, 2)


def beside(envs, env_id):
    """EnvPool alone, made with what ours says it was made with."""
    import envpool

    return envpool.make(env_id, env_type="gymnasium", num_envs=envs.num_envs, seed=envs.seeds, **envs.options)


@pytest.mark.parametrize(
    "env_id",
    ["FrozenLake-v1", "Pendulum-v1", "MiniGrid-GoToDoor-5x5-v0", "CheetahRun-v1", "Maze-v0", "Cleaner-v0", "BinPack-v2"]
    + ["RubiksCube-v0", "SearchAndRescue-v0", "Sudoku-v0", "TSP-v1", "FetchReach-v4", "LaneKeeping-v0", "Blackjack-v1"]
    + ["AlohaHandOver-v1", "FrankaKitchen-v1"],
)
def test_any_spaces_are_envpools_own(env_id):
    """Observations, rewards and ends under the same actions, leaf by leaf."""
    envs = make(env_id, 3)
    alone = beside(envs, env_id)
    layout = envs.spec.frames
    alone.reset()
    envs.reset()
    actions = batch_space(envs.action_space, 3)
    actions.seed(0)
    for _ in range(30):
        taken = actions.sample()
        row = envs.step(taken)
        theirs, rewards, terminated, truncated, _ = alone.step(taken)
        ours = layout.unpack(torch.from_numpy(row.observations))
        for leaf, mine, their in zip(layout.leaves, ours, layout.flatten(nested(theirs)), strict=True):
            assert np.array_equal(mine, np.asarray(their).reshape(mine.shape).astype(leaf.dtype)), leaf
        assert np.array_equal(row.rewards, rewards.astype(np.float32))
        assert np.array_equal(row.terminated | row.truncated, terminated | truncated)


def nested(observations):
    """EnvPool nests some dicts by points in their keys, and where it nests a lone leaf its space does not."""
    if not isinstance(observations, dict):
        return observations
    if set(observations) == {"state"}:
        return observations["state"]
    result = {}
    for key, value in observations.items():
        *outer, last = key.split(".")
        inner = result
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = nested(value)
    return result


def test_minigrids_cells_hold_what_their_bounds_say():
    """EnvPool declares bytes; the numbers of objects, colours and states are small."""
    for env_id in ("MiniGrid-DoorKey-8x8-v0", "MiniGrid-Dynamic-Obstacles-8x8-v0", "MiniGrid-KeyCorridorS3R3-v0"):
        envs = make(env_id, 16)
        (cells,) = (leaf for leaf in envs.spec.leaves if leaf.path == ("image",))
        assert (cells.low, cells.high) == (0, 10)
        index = envs.spec.leaves.index(cells)
        for row in walk(envs, 100):
            assert envs.spec.frames.unpack(torch.from_numpy(row.observations))[index].max() <= 10


def test_legal_actions_of_2048_join_the_observation():
    envs, board = make("Play2048-v1", 4), None
    assert [leaf.path for leaf in envs.spec.leaves] == [("action_mask",), ("observation",)] and envs.spec.mask == 0
    rng, (legal, seen) = np.random.default_rng(0), envs.spec.frames.unpack(torch.from_numpy(envs.reset()))
    for _ in range(200):
        board = seen.clone()
        action = np.array([rng.choice(np.flatnonzero(allowed)) for allowed in legal])
        row = envs.step(action)
        legal, seen = envs.spec.frames.unpack(torch.from_numpy(row.observations))
        moved = (seen != board).flatten(1).any(dim=1).numpy()
        assert moved[row.valid].all(), "a legal move moves something"


def test_frames_of_a_pixel_cannot_be_stacked():
    with pytest.raises(UserError, match="Pong-v5: frames of a single pixel cannot be stacked"):
        look_up_spec(resolve("Atari/Pong"), {"img_height": 1, "img_width": 1})
    assert look_up_spec(resolve("Atari/Pong"), {"img_height": 1, "img_width": 9}).leaves[0].size == 36
