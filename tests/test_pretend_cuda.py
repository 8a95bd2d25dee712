"""The GPU's tests, where there is none, by a device that is played: see `pretend_cuda`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
# Of each kind one that takes seconds; the kernels of `--gae` are interpreted, which is slow.
SELECTED = "spec1 or gae_and or refused or (nothing_waits and tings2) or (CartPole and (trains or muon))"

REFUSED = """
import torch
import pretend_cuda

pretend_cuda.install()
x, host = torch.zeros(3, device="cuda"), torch.zeros(3)
pinned = torch.zeros(3, pin_memory=True)
told = []


def refused(name, work):
    try:
        work()
    except (RuntimeError, TypeError) as error:
        told.append(name)


def overwritten():
    x.copy_(pinned, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    pinned.fill_(1.0)
    event.synchronize()


def recorded(work):
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        work()


refused("mixed", lambda: x + host)
refused("stacked", lambda: torch.stack([x.sum(), host.sum()]))
refused("numpy", x.numpy)
refused("generator", lambda: torch.rand(3, device="cuda", generator=torch.Generator()))
refused("overwritten", overwritten)
refused("recorded item", lambda: recorded(x.sum().item))
refused("recorded upload", lambda: recorded(lambda: x.copy_(host, non_blocking=True)))
refused("recorded number", lambda: recorded(lambda: torch.tensor(1.0, device="cuda")))
unknown = torch.Generator("cuda")
refused("recorded generator", lambda: recorded(lambda: torch.rand(3, device="cuda", generator=unknown)))
torch.cuda.set_sync_debug_mode("error")
refused("truth", lambda: bool(x.sum()))
refused("mask", lambda: x[x > 0])
refused("index", lambda: x[[0, 1]])
refused("download", lambda: host.copy_(x))
refused("upload", lambda: x.copy_(host))
refused("assigned", lambda: x.__setitem__(slice(0, 3), host))
pinned.copy_(x, non_blocking=True)  # nobody waits for it
assert not torch.equal(pinned, torch.zeros(3))
x.copy_(torch.zeros(3, pin_memory=True), non_blocking=True)
assert (x * 2 + 1).device.type == x.device.type == "cuda"
print(*told, sep=", ")
"""


def played(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600)


def test_what_a_device_refuses_is_refused():
    done = played("-c", REFUSED)
    assert done.stdout.strip() == (
        "mixed, stacked, numpy, generator, overwritten, recorded item, recorded upload, recorded number, "
        "recorded generator, truth, mask, index, download, upload, assigned"
    ), done.stderr


def test_the_tests_of_a_gpu_pass_by_it(tmp_path):
    options = ("-p", "pretend_cuda", "-p", "no:cacheprovider", "-q", "--basetemp", str(tmp_path / "own"))
    done = played("-m", "pytest", *options, "-m", "gpu", "-k", SELECTED, str(TESTS / "test_gpu.py"))
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-4000:]
