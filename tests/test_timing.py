"""Phase timers: an inner phase takes its time out of the outer one."""

import time

from fasta2c.timing import PhaseTimer


def test_nested_phases_do_not_count_twice():
    timer = PhaseTimer()
    start = time.perf_counter()
    with timer("outer"):
        time.sleep(0.02)
        with timer("inner"):
            time.sleep(0.05)
    whole = time.perf_counter() - start
    assert timer.seconds["inner"] >= 0.05 and timer.seconds["outer"] >= 0.02
    assert timer.seconds["inner"] + timer.seconds["outer"] <= whole


def test_a_phase_ends_on_an_exception():
    timer = PhaseTimer()
    try:
        with timer("a"):
            raise KeyError
    except KeyError:
        pass
    with timer("b"):
        pass
    assert set(timer.seconds) == {"a", "b"}
