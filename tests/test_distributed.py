"""Ranks: the same gradient as one process, the same parameters everywhere, and what they tell each other."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from rank_work import RankPool, bad_number, comes_apart, exchanges, gradients, is_refused, recorded, trains, waits

from fasta2c import distributed
from fasta2c.distributed import ALONE, Ranks
from fasta2c.envs.base import spread_seeds
from fasta2c.errors import PeerLost

T = 6


@pytest.fixture(scope="module")
def two():
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def four():
    with RankPool(4) as pool:
        yield pool


def unequal(result):
    """What ranks measure by clocks of their own, as `result` has it."""
    return {name: getattr(result, name) for name in ("wall_seconds", "sps", "warm_up_seconds", "time_report")}


def shares(count, num_minibatches):
    """Each rank's columns; and those of one process whose minibatches hold the same rows."""
    num_envs = 10 if num_minibatches == 1 else 12  # where it can, each rank has another number of environments
    own = [list(range(num_envs))[Ranks(rank, count).share(num_envs)] for rank in range(count)]
    return own, [
        int(e) for n in range(num_minibatches) for part in own for e in np.array_split(part, num_minibatches)[n]
    ]


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"normalize_advantage": True, "normalize_observations": True}, id="normalised"),
        pytest.param({"normalize_rewards": True, "reward_clip": 1.0, "optimizer": "adam"}, id="rewards"),
        pytest.param({"recurrent": "lstm", "recurrent_size": 6}, id="recurrent"),
        pytest.param({"shared": False, "critic_updates": 2, "critic_target": "td0"}, id="critic"),
        pytest.param({"num_minibatches": 3, "num_epochs": 2, "target_kl": 0.005}, id="minibatches"),
    ],
)
def test_ranks_make_the_gradient_of_one_process(count, settings, request):
    pool = request.getfixturevalue({2: "two", 4: "four"}[count])
    parts, whole = shares(count, settings.get("num_minibatches", 1))
    for dtype, most in (("float64", 1e-10), ("float32", 1e-5)):
        alone = gradients(ALONE, settings, [whole], T, dtype)
        together = pool(gradients, settings, parts, T, dtype)
        norm = np.linalg.norm(alone["gradient"])
        assert norm > 1e-3
        for rank in together:
            assert np.linalg.norm(rank["gradient"] - alone["gradient"]) <= most * norm
            assert np.allclose(rank["metrics"], alone["metrics"], rtol=1e-4, atol=1e-5, equal_nan=True)
            for name, x in rank["state"].items():
                assert np.array_equal(x, together[0]["state"][name]), name
                assert np.allclose(x, alone["state"][name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("where", ["rewards_TE", "frames"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_bad_number_of_one_rank_keeps_the_update_from_all(two, where, clip):
    """Also where it is clipped, and the gradient finite; the rank that has it tells which it is."""
    first, second = two(bad_number, where, clip)
    assert not first["moved"] and not second["moved"]
    assert first["fault"].env is None and first["fault"].vague > second["fault"].vague
    assert (second["fault"].what, second["fault"].row, second["fault"].env) == (
        ("reward", 3, 1) if where == "rewards_TE" else ("observation", 4, 1)
    )


@pytest.mark.parametrize("rows", [[0, 0], [3, 0], [32, 1], [100, 33], [0, 64]])
def test_ranks_hear_each_others_numbers_and_rows_however_many(two, rows):
    expected = [([rank, 2.5], [[n, rank + n / 8] for n in range(rows[rank])]) for rank in range(2)]
    assert two(exchanges, rows) == [expected, expected]


@pytest.mark.parametrize(
    "settings",
    [
        {"reuse_forward": "off"},
        {"num_minibatches": 2, "num_epochs": 2, "normalize_advantage": True},
        {"normalize_observations": True, "normalize_rewards": True, "reuse_forward": "off"},
    ],
)
def test_recorded_updates_send_their_messages_again(two, settings):
    """As CUDA graphs, which a stand-in for them plays here on a CPU, and NCCL will."""
    for equal, replays in two(recorded, settings):
        assert equal and replays > 0


def test_signals_are_heard_while_another_rank_is_long_about_something(two):
    (total, heard), _ = two(waits, 4.0)
    assert total == 2.0 and heard < 2.5


def test_ranks_that_have_come_apart_are_not_saved(two, tmp_path):
    told = "the parameters of rank 1 differ from those of rank 0; do all ranks have the same hardware and torch?"
    assert two(comes_apart, str(tmp_path / "run")) == [told] * 2


@pytest.mark.parametrize(
    ("settings", "resume", "told"),
    [
        ({"run_dir": "taken"}, None, "taken is not empty"),
        ({"run_dir": "new", "init_from": "nowhere"}, None, "nowhere does not exist"),
        ({}, "nowhere", "nowhere does not exist"),
        ({"run_dir": "new", "env": "torch:walks:Walk", "video_interval": 1}, None, "cannot be drawn"),
    ],
)
def test_what_rank_0_alone_finds_wrong_every_rank_is_refused_by(two, tmp_path, settings, resume, told):
    """A script that catches it goes on with the next run on all of them."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    paths = {name: tmp_path / value if name in ("run_dir", "init_from") else value for name, value in settings.items()}
    heard = two(is_refused, paths, resume and tmp_path / resume)
    assert heard[0] == heard[1] and told in heard[0]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("total", [4, 7, 100])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_shares_cover_everything_once(count, total):
    parts = [range(total)[Ranks(rank, count).share(total)] for rank in range(count)]
    assert [n for part in parts for n in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_by_itself_is_told_from_ranks(monkeypatch):
    assert Ranks.from_environment() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters set it, without torchrun
    monkeypatch.setenv("RANK", "1")
    assert Ranks.from_environment() == ALONE
    for name, value in {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(1, 4, 1, 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Ranks.from_environment() == ALONE


EVERYTHING = {
    "env": "Classic/CartPole", "num_envs": 5, "num_steps": 4, "total_steps": 1900, "quiet": True, "seed": 5,
    "normalize_observations": True, "normalize_rewards": True, "normalize_advantage": True, "num_minibatches": 2,
    "target_kl": 1.0, "log_interval": 7, "checkpoint_interval": 50,
}  # fmt: skip


def same(one, other):
    """Whether two ranks, or runs, have learnt the same to the bit."""
    return all(np.array_equal(x, other["parameters"][name]) for name, x in one["parameters"].items())


def test_a_run_of_two_ranks(two, tmp_path):
    """A hundred updates: parameters equal to the bit, environments and actions of their own, one log of all of it."""
    first, second = two(trains, {**EVERYTHING, "run_dir": str(tmp_path / "run")}, None)
    result = first["result"]
    assert result.updates >= 100 and result == replace(second["result"], **unequal(result))
    assert same(first, second)
    assert first["seeds"] + second["seeds"] == spread_seeds(5, 5) and len(second["seeds"]) == 3
    assert first["actions_seed"] != second["actions_seed"]

    # Every env step is of a game that has ended, here or there, or is under way.
    assert first["episodes"]["finished"] == second["episodes"]["finished"]
    lengths = [length for _, length in first["episodes"]["finished"]]
    under_way = first["episodes"]["lengths"] + second["episodes"]["lengths"]
    assert result.episodes == len(lengths) < 100 and sum(lengths) + sum(under_way) == result.env_steps >= 1900

    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["env_steps"]) == result.env_steps and int(rows[-1]["episodes"]) == result.episodes
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["ranks"]) == ("done", 2)
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1, "rank 0 alone writes"


def test_two_ranks_resume_bit_for_bit(two, tmp_path):
    """Where the environments can be saved, each rank goes on with its own games and generators."""
    changed = {"env": "torch:walks:Walk", "num_minibatches": 1, "total_steps": 4000}
    whole = two(trains, {**EVERYTHING, **changed, "run_dir": str(tmp_path / "whole")}, None)
    half = {**EVERYTHING, **changed, "total_steps": 2000, "run_dir": str(tmp_path / "half")}
    two(trains, half, None)
    resumed = two(trains, {"total_steps": 4000, "quiet": True}, tmp_path / "half")
    for straight, other in zip(whole, resumed, strict=True):
        assert same(straight, other) and straight["episodes"] == other["episodes"]
        assert other["dropped"] == {"games": 0, "env_steps": 0}


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (1, 2), (2, 1), (4, 1)])
def test_another_number_of_ranks_goes_on(two, four, tmp_path, before, after):
    """With what was learnt and counted; all games under way are dropped, whichever rank they were of."""
    changed = {"num_minibatches": 1, "run_dir": str(tmp_path / "run"), "total_steps": 700}
    pools = {1: lambda work, *args: [work(ALONE, *args)], 2: two, 4: four}
    saved = pools[before](trains, {**EVERYTHING, **changed}, None)
    went_on = pools[after](trains, {"total_steps": 1400, "quiet": True}, tmp_path / "run")
    lengths = [n for rank in saved for n in rank["episodes"]["lengths"]]
    finished = sum(length for _, length in went_on[0]["episodes"]["finished"])
    for rank in went_on:
        assert rank["dropped"] == {"games": sum(n > 0 for n in lengths), "env_steps": sum(lengths)}
        assert same(rank, went_on[0]) and rank["result"].env_steps == went_on[0]["result"].env_steps >= 1400
    under_way = sum(n for rank in went_on for n in rank["episodes"]["lengths"])
    assert finished + under_way + sum(lengths) == went_on[0]["result"].env_steps

    # Nothing has been learnt in a session without updates: what was restored is what was saved.
    again = pools[after](trains, {"quiet": True}, tmp_path / "run")
    assert all(same(rank, went_on[0]) for rank in again) and again[0]["result"].updates == went_on[0]["result"].updates


class Work:
    """A collective that has ended by the time it is asked, though waiting for it ran out first."""

    def __init__(self, failure):
        self.waits, self.failure = 0, failure

    def wait(self, timeout=None):
        self.waits += 1
        if self.waits == 1:
            raise RuntimeError("Operation timed out!")
        if self.failure:
            raise RuntimeError(self.failure)

    def is_completed(self):
        return True


def test_what_ends_while_its_wait_runs_out_has_not_failed():
    distributed._wait(done := Work(""))
    assert done.waits == 2
    with pytest.raises(RuntimeError, match="peer"):
        distributed._wait(Work("Connection closed by peer"))


@pytest.mark.parametrize(
    ("torch_says", "told"),
    [
        ("[gloo/pair.cc] Connection closed by peer [10.0.0.2]:4", "^another rank has gone without a word"),
        ("unable to find\n  interface eth7", r"^the ranks cannot reach each other \(unable to find interface eth7\)"),
    ],
)
def test_ranks_that_never_met_are_told_from_those_that_went(torch_says, told):
    with pytest.raises(PeerLost, match=told), distributed._together():
        raise RuntimeError(torch_says)
