"""What a session tells of its time: speed and shares after the warm-up, wall time of all sessions."""

import pytest

from fasta2c.run import clock
from fasta2c.run.clock import Clock
from fasta2c.timing import PhaseTimer


@pytest.fixture
def now(monkeypatch):
    """Seconds that pass only by assignment."""
    time = {"s": 100.0}
    monkeypatch.setattr(clock.time, "perf_counter", lambda: time["s"])
    return time


def test_speed_leaves_out_the_warm_up_and_wall_time_nothing(now):
    timer = PhaseTimer()
    session = Clock(timer, update=10, env_steps=1000, wall_before=50.0)
    assert session.sps(1000) == 0.0
    with timer("update"):
        now["s"] += 20
    assert session.report(update=11, env_steps=1100, num_steps=4, on_gpu=False, in_turn=False, overlapped=False) is None
    session.end_warm_up(update=11, env_steps=1100)
    with timer("env"):
        now["s"] += 3
    with timer("act"):
        now["s"] += 1
    now["s"] += 1
    assert session.wall_seconds == 75.0 and session.warm_up_seconds == 20.0
    assert session.sps(1600) == 100.0
    assert session.phase_seconds == {"env": 3.0, "act": 1.0, "update": 20.0, "copy": 0.0, "log": 0.0, "other": 1.0}
    assert session.shares["update"] == 20 / 24
    report = session.report(update=16, env_steps=1600, num_steps=4, on_gpu=False, in_turn=False, overlapped=True)
    assert report is not None and (report.rows, report.env_steps, report.overlapped) == (20, 500, True)
    assert report.seconds == {"env": 3.0, "act": 1.0, "update": 0.0, "copy": 0.0, "log": 0.0}


def test_a_single_update_has_no_report(now):
    session = Clock(PhaseTimer(), update=0, env_steps=0, wall_before=0.0)
    session.end_warm_up(update=1, env_steps=8)
    assert session.report(update=1, env_steps=8, num_steps=4, on_gpu=False, in_turn=False, overlapped=False) is None
