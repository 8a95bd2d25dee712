"""Env steps and games count once a rollout is whole, on every rank the same."""

import numpy as np

from fasta2c.envs.episodes import Game
from fasta2c.rollout.counts import Counts, RolloutCounts

ALL = slice(0, 3)


def row(counts, valid, scores, over):
    counts.add(np.array(valid, bool), np.array(scores, np.float32), np.array(over, bool), ALL)


def test_rows_count_when_their_rollout_is_whole():
    counts = Counts(3)
    row(counts, [1, 1, 1], [1, 2, 3], [0, 1, 0])
    row(counts, [1, 0, 1], [1, 1e6, 3], [0, 1, 0])  # a reset row: what stands there does not matter
    assert counts.env_steps == 0 and counts.ended == [] and counts.episodes.count == 0
    counts.end_rollout()
    assert counts.env_steps == 5 and counts.ended == [Game(1, 2.0, 1)] and counts.episodes.mean_return == 2.0
    row(counts, [1, 1, 1], [1, 5, 3], [1, 1, 0])
    counts.end_rollout()
    assert counts.env_steps == 8 and counts.ended == [Game(0, 3.0, 3), Game(1, 5.0, 1)]


def test_ranks_are_told_at_the_end_and_heard_when_it_is_settled():
    told = []

    def exchange(here):
        told.append(here)
        return lambda: [here, RolloutCounts(100, [Game(7, 40.0, 9)], 2, 11)]

    counts = Counts(3, exchange)
    row(counts, [1, 1, 1], [1, 2, 3], [0, 1, 0])
    counts.lose(np.array([2]))
    counts.end_rollout()
    assert told == [RolloutCounts(3, [Game(1, 2.0, 1)], 1, 1)] and counts.env_steps == 0
    counts.settle()
    counts.settle()  # there is nothing more to hear
    assert counts.env_steps == 103 and counts.dropped == {"games": 3, "env_steps": 12}
    assert counts.ended == [Game(1, 2.0, 1), Game(7, 40.0, 9)] and counts.episodes.mean_return == 21.0
    row(counts, [1, 1, 1], [0, 0, 4], [0, 0, 1])
    counts.end_rollout()
    assert told[1] == RolloutCounts(3, [Game(2, 4.0, 1)], 0, 0), "the lost game's 3 points are gone"


def test_games_under_way_go_on_or_are_dropped():
    counts = Counts(3)
    row(counts, [1, 1, 1], [1, 2, 3], [0, 1, 0])
    counts.end_rollout()
    saved = counts.state_dict()
    resumed, anew = Counts(3), Counts(3)
    resumed.load_state_dict([saved, saved], 1)
    anew.load_state_dict([saved, saved], None)
    for other in (resumed, anew):
        row(other, [1, 1, 1], [1, 1, 1], [1, 0, 0])
        other.end_rollout()
    assert resumed.ended == [Game(0, 2.0, 2)] and resumed.dropped == {"games": 0, "env_steps": 0}
    assert anew.ended == [Game(0, 1.0, 1)] and anew.dropped == {"games": 4, "env_steps": 4}
    assert resumed.env_steps == anew.env_steps == 6 and resumed.episodes.count == 2
