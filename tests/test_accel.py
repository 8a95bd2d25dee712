"""Device, precision and micro-batch: chosen by rule, refused in words."""

import os

import pytest
import torch

from fasta2c import accel
from fasta2c.errors import UserError

CPU = torch.device("cpu")


def test_auto_is_a_gpu_where_there_is_one():
    assert accel.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert accel.resolve_device("cpu") == CPU


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="not there"):
        accel.resolve_device("cuda:99")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "mps", ""])
def test_a_device_of_no_known_kind_is_refused(name):
    with pytest.raises(UserError, match="device: .* is not one of auto, cpu, cuda, cuda:N"):
        accel.resolve_device(name)


def test_precision_is_probed_not_guessed(monkeypatch):
    for fast in (True, False):
        monkeypatch.setattr(accel, "has_fast_bf16", lambda device, fast=fast: fast)
        chosen = accel.resolve_precision("auto", CPU, convolutional=True)
        assert chosen is (torch.bfloat16 if fast else torch.float32)
        assert accel.resolve_precision("auto", CPU, convolutional=False) is torch.float32
        assert accel.resolve_precision("bf16", CPU, convolutional=False) is torch.bfloat16
        assert accel.resolve_precision("fp32", CPU, convolutional=True) is torch.float32


def test_autocast_does_nothing_for_fp32():
    a = torch.randn(4, 4)
    with accel.autocast(CPU, torch.float32):
        assert (a @ a).dtype is torch.float32
    with accel.autocast(CPU, torch.bfloat16):
        assert (a @ a).dtype is torch.bfloat16


def test_small_networks_get_one_thread():
    before = torch.get_num_threads()
    try:
        accel.set_threads(convolutional=False)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_updates_of_small_networks_use_the_cores_that_their_samples_are_worth(monkeypatch):
    monkeypatch.setattr(accel, "cores", lambda: 4)
    wanted = {1: 1, 1024: 1, 2048: 2, 4096: 4, 10**6: 4}
    assert {n: accel.update_threads(n, convolutional=False) for n in wanted} == wanted
    assert accel.update_threads(1, convolutional=True) == 4


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), accel.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("num_envs", "device", "convolutional", "groups"),
    [(31, "cpu", False, 1), (32, "cpu", False, 2), (256, "cpu", True, 1), (256, "cuda", True, 2), (8, "cuda", True, 1)],
)
def test_environments_take_turns_where_the_network_leaves_them_cores(num_envs, device, convolutional, groups):
    assert accel.env_groups(num_envs, torch.device(device), convolutional=convolutional) == groups


def test_a_download_is_the_tensors_own_memory_on_a_cpu():
    x = torch.arange(4)
    assert accel.Download(x)(x[1:]).ctypes.data == x[1:].data_ptr()


def test_a_requested_micro_batch_wins():
    cuda = torch.device("cuda")
    assert accel.micro_batch(7, CPU, convolutional=True) == 7
    sizes = [accel.micro_batch(0, device, convolutional=cnn) for device, cnn in ((CPU, 1), (CPU, 0), (cuda, 1))]
    assert sizes == sorted(sizes)


def test_kept_graphs_leave_most_of_the_memory():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < accel.graph_budget(CPU) <= total / 4


@pytest.mark.parametrize(
    ("masks", "cores"),
    [
        ([{0, 1, 2, 3}] * 2, 2),
        ([{0, 1, 2, 3, 4}] * 2, 2),
        ([{0, 1}, {2, 3}], 2),
        ([{0}] * 3, 1),
        ([{0, 1, 2, 3}, {2, 3}, {4, 5}], 3),
        ([set(range(128))] * 8, 16),
    ],
)
def test_cores_are_shared_with_who_may_use_the_same(monkeypatch, masks, cores):
    monkeypatch.setattr(accel, "own_cores", lambda: masks[0])
    monkeypatch.setattr(accel, "_sharing", {"cores": 0, "processes": 1})
    assert accel.cores() == len(masks[0])
    alone = accel.free_memory(CPU)
    accel.share_machine(masks)
    assert accel.cores() == cores
    assert accel.free_memory(CPU) == pytest.approx(alone / len(masks), rel=0.2)


def test_ranks_of_a_machine_have_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert str(accel.resolve_device(name, local_rank=1, local_world_size=2)) == "cuda:1"
    assert accel.resolve_device("cpu", local_rank=1, local_world_size=2) == CPU
    with pytest.raises(UserError, match="'cuda:1' is one GPU, for 2 ranks"):
        accel.resolve_device("cuda:1", local_rank=1, local_world_size=2)
    with pytest.raises(UserError, match="3 ranks need a GPU each, 2 found"):
        accel.resolve_device("auto", local_rank=2, local_world_size=3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert accel.resolve_device("auto", local_rank=1, local_world_size=2) == CPU
    with pytest.raises(UserError, match="need a GPU each, 0 found"):
        accel.resolve_device("cuda", local_rank=1, local_world_size=2)


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_a_container_has_read_count_as_free(tmp_path, monkeypatch, version):
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_"), 2: ("max", "current", "")}[version]
    limit, used = tmp_path / f"memory.{names[0]}", tmp_path / f"memory.{names[1]}"
    (tmp_path / "memory.stat").write_text(f"anon 1\n{names[2]}inactive_file 2000\n{names[2]}active_file 500\n")
    limit.write_text("4000\n")
    used.write_text("3900\n")
    here = accel.CONTROL_GROUPS[2 - version]
    monkeypatch.setattr(accel, "CONTROL_GROUPS", [(tmp_path / "none", *here[1:]), (tmp_path, *here[1:])])
    monkeypatch.setattr(accel, "_sharing", {"cores": 0, "processes": 1})
    assert accel.free_memory(CPU) == 4000 - 3900 + 2500
    assert accel.graph_budget(CPU) == 1000
    limit.write_text("max\n")
    assert accel.free_memory(CPU) > 10**6
