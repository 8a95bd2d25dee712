"""The GPU's tests, where there is none, by a device that is played: see `pretend_cuda`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
# Of each kind some that take seconds: all by name, so that none is left out unseen.
SELECTED = [
    *(f"test_an_update_is_the_same_as_on_the_cpu[{optimizer}-spec1]" for optimizer in ("rmsprop", "adam", "muon")),
    *(
        f"test_updates_are_refused_inside_a_recording_from_the_first_on[{on_nan}-{optimizer}]"
        for on_nan, optimizer in (("stop", "rmsprop-tf"), ("skip", "muon"))
    ),
    "test_gae_and_sampling",
    "test_a_run_trains_saves_resumes_and_plays[Classic/CartPole]",
    "test_recorded_graphs_compute_what_plain_calls_compute[2-adam-Classic/CartPole]",
    "test_nothing_waits_for_the_device_but_the_actions[settings2]",
    "test_an_encoder_that_waits_for_the_device_trains_without_graphs_alone",
    "test_a_step_that_is_not_allowed_leaves_parameters_of_every_width[shape1-dtype0]",
    "test_what_ranks_send_each_other_of_a_checkpoint_is_on_the_host",
]

REFUSED = """
import sys

import torch

import pretend_cuda

pretend_cuda.install()
x, host = torch.zeros(3, device="cuda"), torch.zeros(3)
one = torch.ones((), dtype=torch.int64, device="cuda")
pinned = torch.zeros(3, pin_memory=True)
known, unknown = torch.Generator("cuda"), torch.Generator("cuda")
event = torch.cuda.Event()


def recorded(work):
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(known)
    with torch.cuda.graph(graph):
        work()
    return graph


def refused(words, work):
    try:
        work()
    except (RuntimeError, TypeError) as error:
        if words not in str(error):
            sys.exit(f"{words}: {error}")
    else:
        sys.exit(f"not refused: {words}")


def overwritten():
    x.copy_(pinned, non_blocking=True)
    event.record()
    pinned.fill_(1.0)
    event.synchronize()


refused("same device", lambda: x + host)
refused("same device", lambda: torch.stack([x.sum(), host.sum()]))
refused("same device", lambda: host[x.long()])
refused("to numpy", x.numpy)
refused("generator", lambda: torch.rand(3, device="cuda", generator=torch.Generator()))
refused("host memory was written", overwritten)
refused("capturing", lambda: recorded(x.sum().item))
refused("capturing", lambda: recorded(lambda: x.copy_(host, non_blocking=True)))
refused("capturing", lambda: recorded(lambda: torch.tensor(1.0, device="cuda")))
refused("not in capture mode", lambda: recorded(lambda: torch.rand(3, device="cuda", generator=unknown)))
torch.cuda.set_sync_debug_mode("error")
for work in (
    lambda: bool(x.sum()),
    lambda: f"{one}",
    lambda: x[x > 0],
    lambda: x[[0, 1]],
    lambda: x[one],
    lambda: x[:one],
    lambda: torch.where(x > 0),
    lambda: host.copy_(x),
    lambda: host.__setitem__(slice(0, 3), x),
    lambda: x.copy_(host),
    lambda: x.__setitem__(slice(0, 3), host),
    lambda: x.new_tensor([1.0]),
):
    refused("synchronizing", work)

# And what is allowed.
x[x > 0] = 0.0
assert (x * 2 + 1).device.type == x[1:].device.type == "cuda"
x.fill_(2.0)
pinned.copy_(x, non_blocking=True)
assert pinned.tolist() != [2.0] * 3  # nobody has waited for it
event.record()
event.synchronize()
assert pinned.tolist() == [2.0] * 3

# A graph does its kernels again, with the numbers of the host that it was recorded with, and nothing of the host's.
number, counted = torch.tensor(2.0), torch.zeros(3)


def work():
    x.mul_(number)
    torch.rand(3, device="cuda", generator=known)
    counted.add_(1.0)


graph = recorded(work)
number.fill_(100.0)
for _ in range(3):
    graph.replay()
torch.cuda.set_sync_debug_mode("default")
assert (x.tolist(), counted.tolist()) == ([16.0] * 3, [1.0] * 3)
"""


def played(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600)


def test_what_a_device_refuses_is_refused():
    done = played("-c", REFUSED)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_tests_of_a_gpu_pass_by_it(tmp_path):
    options = ("-p", "pretend_cuda", "-p", "no:cacheprovider", "-q", "--basetemp", str(tmp_path / "own"))
    done = played("-m", "pytest", *options, *(f"{TESTS / 'test_gpu.py'}::{test}" for test in SELECTED))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert f"{len(SELECTED)} passed" in done.stdout
