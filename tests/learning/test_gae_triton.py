"""The Triton kernel against the plain scan: in Triton's interpreter on a CPU, as it is on a GPU."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasta2c.errors import UserError
from fasta2c.learning.advantages import build_estimators, gae, vtrace

kernels = pytest.importorskip("fasta2c.learning.gae_triton", exc_type=ModuleNotFoundError)
gae_triton, vtrace_triton = kernels.gae_triton, kernels.vtrace_triton
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def case(T, E, seed=0, ends=0.2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(T, E, generator=generator, dtype=dtype)
    values = torch.randn(T + 1, E, generator=generator, dtype=dtype)
    terminated, truncated = (torch.rand(T, E, generator=generator) < ends for _ in range(2))
    return tuple(x.to(DEVICE) for x in (rewards, values, terminated, truncated))


def both(arguments, gamma, gae_lambda):
    """By the kernel and by the scan; with a fifth argument, the ratios, V-trace's."""
    kernel, scan = (gae_triton, gae) if len(arguments) == 4 else (vtrace_triton, vtrace)
    found = kernel(*arguments, gamma=gamma, gae_lambda=gae_lambda)
    wanted = scan(*(x.double() if x.is_floating_point() else x for x in arguments), gamma=gamma, gae_lambda=gae_lambda)
    return [x.double().cpu() for x in found], [x.cpu() for x in wanted]


@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(1, 40),
    E=st.integers(1, 70),
    seed=st.integers(0, 10_000),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    gae_lambda=st.sampled_from([0.0, 0.95, 1.0]),
    ends=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_any_size_agrees_with_the_float64_scan(T, E, seed, gamma, gae_lambda, ends):
    for found, wanted in zip(*both(case(T, E, seed, ends), gamma, gae_lambda), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)


def ratios(T, E, seed=0):
    return torch.randn(T, E, generator=torch.Generator().manual_seed(seed + 1)).exp().to(DEVICE)


@settings(max_examples=15, deadline=None)
@given(
    T=st.integers(1, 40),
    E=st.integers(1, 70),
    seed=st.integers(0, 10_000),
    gae_lambda=st.sampled_from([0.0, 0.95, 1.0]),
    ends=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_vtrace_of_any_size_agrees_with_the_float64_scan(T, E, seed, gae_lambda, ends):
    arguments = (*case(T, E, seed, ends), ratios(T, E, seed))
    for found, wanted in zip(*both(arguments, 0.99, gae_lambda), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("end", [10, 20])  # inside a tile of 16 rows, counted from row 36; and between two
@pytest.mark.parametrize("weighted", [False, True])
def test_a_poisoned_reset_row_reaches_no_other(poison, end, weighted):
    arguments = (*case(37, 5, ends=0.0), *([ratios(37, 5)] if weighted else []))
    rewards, values, terminated = arguments[:3]
    terminated[end, 2] = True
    clean, _ = both(arguments, 0.99, 0.95)
    for x in (rewards, values, *arguments[4:]):
        x[end + 1, 2] = poison
    dirty, _ = both(arguments, 0.99, 0.95)
    others = np.ones((37, 5), dtype=bool)
    others[end + 1, 2] = False
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[others], b[others])


def test_inputs_need_not_be_contiguous():
    arguments = tuple(x.T.contiguous().T for x in case(9, 6))
    for found, wanted in zip(*both(arguments, 0.9, 0.8), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_without_a_gpu_it_is_refused_and_auto_is_the_scan():
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="CUDA"):
        build_estimators("triton", cpu)
    assert build_estimators("auto", cpu) == (gae, vtrace)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "E"), [(1, 1), (5, 16), (8, 256), (33, 1000), (128, 4096)])
def test_on_a_gpu_auto_is_the_kernel_and_agrees_with_the_scan(T, E):
    assert build_estimators("auto", DEVICE) == (gae_triton, vtrace_triton)
    for found, wanted in zip(*both(case(T, E, ends=0.01), 0.99, 0.95), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "E"), [(1, 1), (33, 1000), (32, 8)])
def test_on_a_gpu_vtrace_agrees_with_the_scan(T, E):
    for found, wanted in zip(*both((*case(T, E, ends=0.01), ratios(T, E)), 0.99, 0.95), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
