"""What a run is told about its time: shares, limits and one sentence that fits."""

import pytest

from fasta2c.run.report import TimeReport


def report(env=1.0, act=1.0, update=1.0, copy=0.0, log=0.0, *, rows=100, on_gpu=False, in_turn=False, overlapped=False):
    seconds = {"env": env, "act": act, "update": update, "copy": copy, "log": log}
    return TimeReport(seconds, env_steps=1000, rows=rows, on_gpu=on_gpu, in_turn=in_turn, overlapped=overlapped)


def test_shares_add_up_and_come_in_order():
    assert report(5, 3, 1, 0, 1).shares == "environments 50%, acting 30%, updating 10%, logging 10%, copying 0%"


def test_limits_are_steps_over_the_time_of_one_part():
    assert report(2, 3, 1).limit == (
        "500 env steps per second if only environments took time, 250 if only the network did"
    )
    assert "if only" in report(0, 1, 1).limit
    assert (
        report(2, 3, 1, overlapped=True).limit == "250 env steps per second if the environments were never waited for"
    )


@pytest.mark.parametrize(
    ("seconds", "more", "words"),
    [
        ({"env": 9}, {}, "more CPU cores, not more --num-envs"),
        ({"env": 9}, {"in_turn": True}, "Gymnasium"),
        ({"update": 9}, {}, "a GPU"),
        ({"act": 9}, {"on_gpu": True}, "bf16"),
        ({"env": 2.5, "act": 1.5, "update": 1.5}, {}, "a GPU"),
        ({"log": 9}, {}, "intervals"),
        ({"copy": 9}, {}, "copies"),
        # rows of 200 µs: more environments share what each costs
        ({"env": 1, "act": 1}, {"rows": 10_000}, "raise --num-envs"),
        ({"update": 9}, {"rows": 10_000}, "a GPU"),
    ],
)
def test_the_advice_is_about_the_longest_part(seconds, more, words):
    assert words in report(**seconds, **more).advice
