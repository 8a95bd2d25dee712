"""Gymnasium's environments under the row contract, and a user's own by `gymnasium:module:ID`."""

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from fasta2c.envs import workers
from fasta2c.envs.gymnasium import GymnasiumEnvs
from fasta2c.envs.ids import resolve
from fasta2c.envs.registry import maker
from fasta2c.errors import RunError, UserError


class Counter(gymnasium.Env):
    """Observes how many steps it has taken; ends after `length` of them by its own rules."""

    action_space = gymnasium.spaces.Discrete(2, start=5)

    def __init__(self, length: int = 3, dtype: str = "float64"):
        self.length = length
        self.observation_space = gymnasium.spaces.Box(0, 99, (1,), np.dtype(dtype).type)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, self.observation_space.dtype), {}

    def step(self, action):
        assert action in (5, 6)
        self.steps += 1
        return np.full(1, self.steps, self.observation_space.dtype), float(action), self.steps == self.length, False, {}


@pytest.fixture(autouse=True, scope="module")
def registered():
    entry_points = {"Counter": Counter, "Cut": Counter, "Doubled": Doubled, "Boxed": Boxed, "Untold": zip}
    entry_points |= {"Refusing": Refusing, "Telling": Telling, "Shrinking": Shrinking}
    for name, entry_point in entry_points.items():
        options = {
            "max_episode_steps": 2 if name == "Cut" else None,
            "disable_env_checker": name in ("Doubled", "Boxed"),
        }
        gymnasium.register(f"test_gymnasium/{name}-v0", entry_point=entry_point, **options)
    yield
    for name in entry_points:
        gymnasium.registry.pop(f"test_gymnasium/{name}-v0")


def make(env_id, num_envs=2, *, timeout=0.0, restart=False, **options):
    made, seeds = resolve(f"gymnasium:{env_id}"), list(range(num_envs))
    return GymnasiumEnvs(made, num_envs, seeds=seeds, options=options, timeout=timeout, restart=restart)


class Boxed(Counter):
    """Tells numbers as arrays of one, and flags as whole numbers."""

    def step(self, action):
        observation, reward, over, cut, info = super().step(action)
        return observation, np.array([reward]), np.array([int(over)]), int(cut), info


class Doubled(Counter):
    """Tells two rewards at once."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward, reward]), *rest


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_reward_that_is_none_ends_the_run_however_often_it_is_made_anew(mode):
    envs = make("test_gymnasium/Doubled-v0", 2, restart=True, vectorization_mode=mode)
    envs.reset()
    with pytest.raises(RunError, match="It has failed 4 times in a row"):
        for _ in range(20):
            envs.step(np.array([5, 5]))
    envs.close()


class Telling(Counter):
    """Its infos are never alike."""

    def step(self, action):
        *row, _ = super().step(action)
        return *row, {"legal": np.arange(self.steps + self.np_random.integers(9)), "told": {}, str(self.steps): None}


class Shrinking(Counter):
    """Its second observation is of another shape than its space says."""

    def step(self, action):
        observation, *row = super().step(action)
        return observation[0] if self.steps == 2 else observation, *row


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_infos_may_be_anything(mode):
    envs = make("test_gymnasium/Telling-v0", 3, vectorization_mode=mode)
    envs.reset()
    rows = [envs.step(np.full(3, 5)) for _ in range(4)]
    envs.close()
    assert [row.rewards.tolist() for row in rows] == [[5.0] * 3] * 3 + [[0.0] * 3]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_observation_of_another_shape_than_its_space_ends_the_run(mode):
    envs = make("test_gymnasium/Shrinking-v0", 2, vectorization_mode=mode)
    envs.reset()
    envs.step(np.full(2, 5))
    with pytest.raises(RunError, match=r"its space says observation \[1\] of float32, it gave \[\]"):
        envs.step(np.full(2, 5))
    envs.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_numbers_may_be_arrays_of_one(num_envs, mode):
    envs = make("test_gymnasium/Boxed-v0", num_envs, vectorization_mode=mode)
    envs.reset()
    rows = [envs.step(np.full(num_envs, 6)) for _ in range(5)]
    envs.close()
    assert [row.rewards.tolist() for row in rows] == [[r] * num_envs for r in (6, 6, 6, 0, 6)]
    assert [row.terminated.tolist() for row in rows] == [
        [over] * num_envs for over in (False, False, True, False, False)
    ]
    assert [row.valid.tolist() for row in rows] == [[valid] * num_envs for valid in (True, True, True, False, True)]


def test_next_step_autoreset():
    envs = make("test_gymnasium/Counter-v0")
    assert envs.reset().tolist() == [[0], [0]]
    rows = [envs.step(np.array([5, 6])) for _ in range(5)]
    assert [r.observations[0, 0] for r in rows] == [1, 2, 3, 0, 1]
    assert [r.rewards.tolist() for r in rows] == [[5, 6]] * 3 + [[0, 0], [5, 6]]
    assert [r.terminated[0] for r in rows] == [False, False, True, False, False]
    assert [r.valid[0] for r in rows] == [True, True, True, False, True]
    assert [r.opens[0] for r in rows] == [False, False, False, True, False]
    assert [r.game_over[0] for r in rows] == [False, False, True, False, False]
    assert rows[0].observations.dtype == np.float32 and rows[0].rewards.dtype == np.float32


def test_a_time_limit_truncates_at_the_true_last_observation():
    rows = []
    envs = make("test_gymnasium/Cut-v0")
    envs.reset()
    rows = [envs.step(np.array([5, 5])) for _ in range(3)]
    assert rows[1].truncated.all() and not rows[1].terminated.any() and rows[1].observations[0, 0] == 2
    assert not rows[2].valid.any()


def test_options_are_checked_against_the_constructor():
    assert make("test_gymnasium/Counter-v0", length=7).options == {"length": 7}
    with pytest.raises(UserError, match="Did you mean length"):
        make("test_gymnasium/Counter-v0", lenght=7)
    limited = make("test_gymnasium/Counter-v0", max_episode_steps=1)
    limited.reset()
    assert limited.step(np.array([5, 5])).truncated.all()


def test_a_module_of_the_users_is_imported_first(tmp_path, monkeypatch):
    (tmp_path / "their_envs.py").write_text(
        "import gymnasium\ngymnasium.register('Theirs-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make("their_envs:Theirs-v0").spec.frames.shape == (4,)
    gymnasium.registry.pop("Theirs-v0")
    sys.modules.pop("their_envs")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPoll-v1", "Did you mean CartPole-v"),
        ("no_such_module:Thing-v0", "no module named 'no_such_module'"),
        ("lacking:Thing-v0", r"importing lacking failed: DependencyNotInstalled: pip install it \(lacking.py:2\)"),
    ],
)
def test_mistakes_are_told_in_words(env_id, message, tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text(
        "import gymnasium\nraise gymnasium.error.DependencyNotInstalled('pip install it')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=message):
        make(env_id)


def test_an_entry_point_that_tells_no_signature_is_no_mistake():
    """As those of classes in C; what it is given wrong comes out when it is made."""
    with pytest.raises(UserError, match="cannot be made"):
        make("test_gymnasium/Untold-v0")


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError


def test_an_error_that_cannot_be_told_is_named():
    with pytest.raises(UserError, match=r"cannot be made: Unspeakable \("):
        make("test_gymnasium/Refusing-v0")


class Refusing(Counter):
    def __init__(self):
        raise Unspeakable


def test_seeds_make_it_reproducible():
    assert np.array_equal(make("CartPole-v1").reset(), make("CartPole-v1").reset())


@pytest.mark.parametrize("env_id", ["Blackjack-v1", "FrozenLake-v1", "Pendulum-v1", "Acrobot-v1"])
def test_other_spaces_are_taken(env_id):
    envs = make(env_id, 3)
    alone = gymnasium.make_vec(env_id, num_envs=3, vectorization_mode="sync")
    theirs, _ = alone.reset(seed=envs.seeds)
    leaves = envs.spec.frames.unpack(torch.from_numpy(envs.reset()))
    for leaf, mine, their in zip(envs.spec.leaves, leaves, envs.spec.frames.flatten(theirs), strict=True):
        assert np.array_equal(mine, their.astype(leaf.dtype))
    alone.action_space.seed(0)
    actions = alone.action_space.sample()
    assert np.allclose(envs.step(actions).rewards, alone.step(actions)[1])


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_in_this_process_or_in_others_the_rows_are_the_same(mode):
    envs = make("CartPole-v1", 3, vectorization_mode=mode, max_episode_steps=12)
    plain = make("CartPole-v1", 3, max_episode_steps=12)
    assert envs.in_turn is (mode == "sync") and plain.in_turn
    assert np.array_equal(envs.reset(), plain.reset())
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = rng.integers(0, 2, 3)
        envs.send(actions)
        row = envs.receive()
        for name, expected in plain.step(actions)._asdict().items():
            assert np.array_equal(getattr(row, name), expected), name
    envs.close()
    plain.close()


def test_wrappers_are_laid_over_the_environment():
    time_aware = "gymnasium.wrappers:TimeAwareObservation"
    clipped = {"gymnasium.wrappers:ClipReward": {"min_reward": 0, "max_reward": 0.25}}
    envs = make("CartPole-v1", 2, wrappers=[time_aware, clipped])
    assert envs.reset().shape == (2, 5)
    assert envs.step(np.zeros(2, int)).rewards.tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectorization_mode": "threads"}, "not one of sync, async"),
        ({"wrappers": "gymnasium.wrappers:ClipReward"}, "expected a list"),
        ({"wrappers": [{"a": 1}]}, "is no wrapper"),
        ({"wrappers": ["nowhere:Nothing"]}, "no module named 'nowhere'"),
        ({"wrappers": ["gymnasium.wrappers:Nothing"]}, "has no 'Nothing'"),
        ({"wrappers": ["os:path"]}, "os:path is no wrapper, but a module"),
        ({"wrappers": ["NoModule"]}, "write module:Name"),
        ({"wrappers": [{"gymnasium.wrappers:ClipReward": {"nope": 1}}]}, "cannot be made"),
    ],
)
def test_mistakes_with_wrappers_are_told_in_words(options, message):
    with pytest.raises(UserError, match=message):
        make("CartPole-v1", **options)


@pytest.mark.parametrize("name", ["num_envs", "id", "vector_kwargs"])
def test_a_name_that_gymnasium_takes_itself_is_no_option(name):
    with pytest.raises(UserError, match=f"env_kwargs.{name}: Gymnasium has this name for itself"):
        maker("CartPole-v1", {name: 3}, render=False)


class Strict(Counter):
    """Takes what its space contains and nothing else."""

    action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float64)

    def step(self, action):
        assert self.action_space.contains(action)
        return np.zeros(1), 0.0, False, False, {}


def test_a_bound_that_float32_rounds_is_kept(registered):
    gymnasium.register("test_gymnasium/Strict-v0", entry_point=Strict)
    try:
        envs = make("test_gymnasium/Strict-v0", disable_env_checker=True)
        envs.reset()
        envs.step(np.array([[0.1], [-0.1]], np.float32))  # 0.10000000149
    finally:
        gymnasium.registry.pop("test_gymnasium/Strict-v0")


def test_a_second_reset_plays_other_episodes():
    envs = make("CartPole-v1")
    assert not np.array_equal(envs.reset(), envs.reset())


def test_other_processes_outlive_what_the_terminal_sends():
    """Ctrl-C, `timeout` and systemd reach every process of a run: theirs must not end before ours has saved."""
    envs = make("CartPole-v1", 2, vectorization_mode="async")
    try:
        envs.reset()
        processes = envs._parts[0].envs.processes
        for process in processes:
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGHUP)
            os.kill(process.pid, signal.SIGTERM)
        for _ in range(5):
            envs.step(np.zeros(2, int))
        os.kill(processes[1].pid, signal.SIGKILL)
        with pytest.raises(RunError, match="the process of environment 1 was ended by SIGKILL"):
            for _ in range(5):
                envs.step(np.zeros(2, int))
    finally:
        envs.close()
    assert not any(process.is_alive() for process in processes)


KILLED = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
import gymnasium, numpy as np
from fasta2c.envs.gymnasium import GymnasiumEnvs
from fasta2c.envs.ids import resolve
from test_gymnasium import Failing

gymnasium.register("test_gymnasium/Failing-v0", entry_point=Failing)
options = {{"how": "hang", "vectorization_mode": "async"}}
envs = GymnasiumEnvs(resolve("gymnasium:test_gymnasium/Failing-v0"), 2, seeds=[0, 1], options=options)
envs.reset()
for _ in range(3):
    envs.send(np.full(2, 5))
    print(*(process.pid for process in envs._parts[0].envs.processes), flush=True)
    {last}
"""


@pytest.mark.parametrize(
    "last", ["envs.receive()", "_ < 2 and envs.receive() or _ == 2 and sys.exit(3)"], ids=["killed", "exits"]
)
def test_no_process_outlives_ours_even_if_it_hangs(last):
    """A killed run must leave nobody who holds the lock on its folder; one that exits must not wait for them."""
    script = KILLED.format(tests=str(Path(__file__).parent), last=last)
    ours = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert ours.stdout is not None
    pids = [int(pid) for pid in [ours.stdout.readline() for _ in range(3)][-1].split()]
    assert len(pids) == 2
    if last == "envs.receive()":
        ours.kill()
    assert ours.wait(timeout=60) == (-signal.SIGKILL if last == "envs.receive()" else 3)
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


class Pipe:
    """Answers when it has been asked so often, by a clock of its own; the first time takes `stopped` seconds more."""

    now = 0.0

    def __init__(self, answers_at: int, stopped: float = 0.0):
        self.asked, self.answers_at, self.stopped = 0, answers_at, stopped

    def poll(self, timeout):
        self.asked += 1
        Pipe.now += timeout + self.stopped * (self.asked == 1)
        return self.asked == self.answers_at


@pytest.mark.parametrize(("answers_at", "stopped", "in_time"), [(4, 3600, True), (9, 0, True), (12, 0, False)])
def test_time_in_which_this_process_was_stopped_is_no_wait(answers_at, stopped, in_time, monkeypatch):
    """The clock leaps by an hour over Ctrl-Z and fg."""
    monkeypatch.setattr(workers.time, "monotonic", lambda: Pipe.now)
    assert workers.Patience(10.0).outlasts([None, Pipe(answers_at, stopped)]) == in_time


class Closing(Counter):
    def __init__(self, how: str):
        super().__init__(9)
        self.how = how

    def close(self):
        if self.how == "hang":
            time.sleep(1000 if multiprocessing.parent_process() else 0)  # ours makes one to see what it is like
        else:
            raise ValueError("the door\nis stuck")


@pytest.mark.parametrize(
    ("mode", "how", "told"),
    [("sync", "raise", "could not be closed: ValueError: the door is stuck"), ("async", "hang", "were killed")],
)
def test_environments_that_do_not_close_are_told_of_and_let_go(mode, how, told, monkeypatch, capsys):
    monkeypatch.setattr("fasta2c.envs.gymnasium.CLOSING_SECONDS", 1.0)
    gymnasium.register("test_gymnasium/Closing-v0", entry_point=Closing)
    try:
        envs = make("test_gymnasium/Closing-v0", 2, how=how, vectorization_mode=mode)
        envs.reset()
        envs.close()
        # `active_children` would wait for them itself
        ended = [process.exitcode for process in getattr(envs._parts[0].envs, "processes", [])]
        envs.close()
    finally:
        gymnasium.registry.pop("test_gymnasium/Closing-v0")
    assert None not in ended and not multiprocessing.active_children()
    assert capsys.readouterr().err.count(told) == 1


class Dreaming(Counter):
    """Takes for ever to be made, but for ours, which is made to see what it is like."""

    def __init__(self):
        super().__init__()
        time.sleep(1000 if multiprocessing.parent_process() else 0)


def test_processes_of_a_vector_that_cannot_be_made_are_gone(monkeypatch):
    """Gymnasium would send them SIGTERM, which they let go by, and wait."""
    gymnasium.register("test_gymnasium/Dreaming-v0", entry_point=Dreaming)
    monkeypatch.setattr(gymnasium.vector.AsyncVectorEnv, "_check_spaces", lambda self: 1 / 0)
    try:
        with pytest.raises(UserError, match="cannot be made: ZeroDivisionError"):
            make("test_gymnasium/Dreaming-v0", 2, vectorization_mode="async")
    finally:
        gymnasium.registry.pop("test_gymnasium/Dreaming-v0")
    assert not multiprocessing.active_children()


class Failing(Counter):
    """That of seed 1 fails in its third step."""

    def __init__(self, how: str, length: int = 9):
        super().__init__(length)
        self.how, self.fails = how, False

    def reset(self, *, seed=None, options=None):
        self.fails = self.fails or seed == 1
        if self.how == "reset" and self.fails:
            raise OSError("no such\n  display")
        return super().reset(seed=seed)

    def step(self, action):
        if self.fails and self.steps == 2:
            if self.how == "die":
                os._exit(3)
            if self.how == "hang":
                time.sleep(1000)
            raise OSError("no such\n  display")
        return super().step(action)


@pytest.fixture
def failing():
    gymnasium.register("test_gymnasium/Failing-v0", entry_point=Failing)
    yield
    gymnasium.registry.pop("test_gymnasium/Failing-v0")


FAILURES = [
    ("sync", "raise", r"an environment raised OSError: no such display \(test_gymnasium.py:\d+\)"),
    ("async", "raise", "environment 1 raised OSError: no such display"),
    ("async", "die", "the process of environment 1 was ended with exit code 3"),
    ("async", "hang", "environment 1 has not answered within 2 s"),
]


@pytest.mark.parametrize(("mode", "how", "told"), FAILURES)
def test_an_environment_that_fails_ends_the_run_in_words(failing, mode, how, told):
    envs = make("test_gymnasium/Failing-v0", 3, timeout=2.0, how=how, vectorization_mode=mode)
    envs.reset()
    for _ in range(2):
        envs.step(np.full(3, 5))
    with pytest.raises(RunError, match=f"^gymnasium:test_gymnasium/Failing-v0: {told}"):
        envs.step(np.full(3, 5))
    envs.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("mode", "how", "told"), FAILURES)
def test_an_environment_that_fails_is_made_anew_if_asked(failing, mode, how, told, capsys):
    envs = make("test_gymnasium/Failing-v0", 3, timeout=2.0, restart=True, how=how, vectorization_mode=mode)
    assert envs.reset().tolist() == [[0], [0], [0]]
    rows = [envs.step(np.full(3, 5)) for _ in range(6)]
    envs.close()
    assert not multiprocessing.active_children()
    assert [row.observations[:, 0].tolist() for row in rows] == [
        [n, m, n] for n, m in zip(range(1, 7), [1, 2, 2, 0, 1, 2], strict=True)
    ]
    assert [row.valid.tolist() for row in rows] == [[True, n not in (2, 3), True] for n in range(6)]
    assert [row.truncated.tolist() for row in rows] == [[False, n == 2, False] for n in range(6)]
    assert not any(row.game_over.any() for row in rows)
    assert [row.lost is not None and row.lost.tolist() for row in rows] == [
        n == 2 and [False, True, False] for n in range(6)
    ]
    assert [row.opens.tolist() for row in rows] == [[False, n == 3, False] for n in range(6)]
    assert [row.rewards.tolist() for row in rows] == [[5, 0 if n in (2, 3) else 5, 5] for n in range(6)]
    assert not any(row.terminated.any() for row in rows)
    assert envs.restarts == 1
    told = told.replace("an environment", "environment 1")
    assert re.search(
        f"warning: gymnasium:test_gymnasium/Failing-v0: {told}.*; it is made anew", capsys.readouterr().err
    )


def test_singly_they_play_as_together():
    plain, watched = make("CartPole-v1", 3), make("CartPole-v1", 3, restart=True, vectorization_mode="async")
    assert np.array_equal(plain.reset(), watched.reset())
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(0, 2, 3)
        row = watched.step(actions)
        for name, expected in plain.step(actions)._asdict().items():
            assert np.array_equal(getattr(row, name), expected), name
    watched.close()


def test_an_environment_that_fails_again_and_again_ends_the_run(failing, monkeypatch):
    envs = make("test_gymnasium/Failing-v0", 2, restart=True, how="raise")
    envs.reset()
    monkeypatch.setattr(Failing, "step", lambda self, action: 1 / 0)
    monkeypatch.setattr(Failing, "reset", lambda self, **_: 1 / 0)
    with pytest.raises(RunError, match="environment 0 raised ZeroDivisionError: .* It has failed 4 times in a row"):
        for _ in range(9):
            envs.step(np.full(2, 5))
    envs.close()


def test_an_environment_that_cannot_even_begin_ends_the_run(failing):
    with pytest.raises(RunError, match="an environment raised OSError: no such display"):
        make("test_gymnasium/Failing-v0", 3, how="reset").reset()


class Late(Counter):
    """Cannot begin, the first `times` that one is asked to."""

    def __init__(self, times: int):
        super().__init__()
        Late.left = getattr(Late, "left", times)

    def reset(self, *, seed=None, options=None):
        Late.left -= 1
        if Late.left >= 0:
            raise OSError("no such display")
        return super().reset(seed=seed)


@pytest.mark.parametrize(("times", "ends"), [(3, False), (4, True)])
def test_an_environment_that_cannot_begin_at_once_is_made_anew_if_asked(times, ends, capsys, monkeypatch):
    gymnasium.register("test_gymnasium/Late-v0", entry_point=Late)
    monkeypatch.delattr(Late, "left", raising=False)
    try:
        envs = make("test_gymnasium/Late-v0", 2, restart=True, times=times)
        if ends:
            with pytest.raises(RunError, match="It has failed 4 times in a row"):
                envs.reset()
            return
        assert envs.reset().tolist() == [[0], [0]] and envs.restarts == 3
        row = envs.step(np.full(2, 5))
        assert row.valid.all() and row.lost is None and row.observations.tolist() == [[1], [1]]
        assert capsys.readouterr().err.count("it is made anew") == 3
    finally:
        envs.close()
        gymnasium.registry.pop("test_gymnasium/Late-v0")


class Paying(Counter):
    """Pays so much, in games of one step."""

    def __init__(self, pays: float):
        super().__init__(1)
        self.pays = pays

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, self.pays, *rest


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_scores_are_the_environments_own_numbers(mode):
    """2^24 + 1 is no float32, and 0.9 neither."""
    gymnasium.register("test_gymnasium/Paying-v0", entry_point=Paying)
    try:
        for pays in (2.0**24 + 1, 0.9):
            envs = make("test_gymnasium/Paying-v0", 2, pays=pays, vectorization_mode=mode)
            envs.reset()
            row = envs.step(np.full(2, 5))
            envs.close()
            assert row.scores.tolist() == [pays] * 2
            assert row.rewards.dtype == np.float32 and row.rewards.tolist() == [np.float32(pays)] * 2
    finally:
        gymnasium.registry.pop("test_gymnasium/Paying-v0")


class Noisy(Counter):
    """Draws from the generators that everybody in its process shares."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([random.random() + np.random.rand()]), {}


def test_processes_draw_noise_of_their_own():
    """They inherit one and the same state of NumPy's generator."""
    gymnasium.register("test_gymnasium/Noisy-v0", entry_point=Noisy)
    try:
        drawn = []
        for _ in range(2):
            envs = make("test_gymnasium/Noisy-v0", 3, vectorization_mode="async")
            drawn.append(envs.reset()[:, 0].tolist())
            envs.close()
    finally:
        gymnasium.registry.pop("test_gymnasium/Noisy-v0")
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3
