"""Episode statistics over real games, with values that can be told apart."""

import numpy as np
import pytest

from fasta2c.envs.episodes import EpisodeStatistics


def play(statistics, scores, envs=slice(None), *, valid=(1, 1), game_over=(0, 0)):
    """One row, and the games that it ended, recorded."""
    games = statistics.update(*row(scores, valid=valid, game_over=game_over), envs)
    statistics.record(games)
    return games


def row(scores, *, valid=(1, 1), game_over=(0, 0)):
    return np.array(valid, bool), np.array(scores, np.float32), np.array(game_over, bool)


def test_games_are_summed_over_lives_and_reset_rows_left_out():
    statistics = EpisodeStatistics(2)
    assert statistics.mean_return is None
    play(statistics, [1, 10])
    statistics.update(*row([2, 20]))  # a life, say
    statistics.update(*row([1e6, 30], valid=(0, 1), game_over=(1, 0)))  # a reset row: poisoned
    assert play(statistics, [4, 40], game_over=(1, 1)) == [(0, 7.0, 3), (1, 100.0, 4)]
    play(statistics, [8, 80], game_over=(1, 0))
    assert (statistics.count, statistics.mean_return, statistics.mean_length) == (3, 115 / 3, 8 / 3)


def test_rows_of_some_environments_count_for_them():
    statistics = EpisodeStatistics(3)
    play(statistics, [1, 2], slice(1, 3))
    assert play(statistics, [10, 20], slice(1, 3), game_over=(0, 1)) == [(2, 22.0, 2)]
    assert play(statistics, [100, 200], slice(0, 2), game_over=(1, 1)) == [(0, 100.0, 1), (1, 211.0, 3)]


def test_the_window_is_the_last_games():
    statistics = EpisodeStatistics(2, window=2)
    for score in (1, 2, 3):
        play(statistics, [score, 0], game_over=(1, 0))
    assert statistics.mean_return == 2.5 and statistics.count == 3 and statistics.full


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_a_game_whose_score_is_no_number_is_counted_and_not_averaged(odd):
    statistics = EpisodeStatistics(2, window=2)
    for score in (1, odd, 3):
        play(statistics, [score, 0], game_over=(1, 0))
    assert statistics.mean_return == 2.0 and statistics.mean_length == 1 and statistics.count == 3


def test_state_survives_games_under_way_included():
    statistics = EpisodeStatistics(2)
    play(statistics, [5, 7], game_over=(1, 0))
    restored = EpisodeStatistics(2)
    restored.load_finished(statistics.state_dict())
    assert (restored.count, restored.mean_return) == (1, 5.0)
    restored.load_under_way(statistics.state_dict())
    play(restored, [0, 1], game_over=(0, 1))
    assert (restored.count, restored.mean_return, restored.mean_length) == (2, 6.5, 1.5)


def test_games_under_way_can_be_dropped():
    statistics = EpisodeStatistics(3)
    play(statistics, [5, 7, 9], valid=(1, 1, 1), game_over=(1, 0, 0))
    play(statistics, [5, 7, 9], valid=(0, 1, 1), game_over=(0, 0, 0))
    assert statistics.drop_under_way(np.array([0, 2])) == {"games": 1, "env_steps": 2}
    assert play(statistics, [1, 1, 1], valid=(1, 1, 1), game_over=(1, 1, 1))[1:] == [(1, 15.0, 3), (2, 1.0, 1)]
    play(statistics, [1, 1, 1], valid=(1, 1, 1), game_over=(0, 0, 0))
    assert statistics.drop_under_way(slice(None)) == {"games": 3, "env_steps": 3}
