"""What only a GPU can show; skipped where there is none."""

import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mcr.training.batch_norm import _FusedGlobalNorm
from mcr.training.engine import EngineConfig, on_device
from mcr.training.watch import Watch
from tests.training.one_step import ALONE, make_engine, whole_batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


@pytest.fixture
def group_of_one():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=address, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_global_batch_norm_is_torchs(group_of_one, layout):
    torch.manual_seed(0)
    expected = nn.BatchNorm2d(6, device=GPU)
    nn.init.normal_(expected.weight)
    images = (3 * torch.randn(8, 6, 5, 4, device=GPU) + 5).to(memory_format=layout)
    towards = torch.randn_like(images)
    running = torch.zeros(6, device=GPU), torch.ones(6, device=GPU)
    results = []
    for normalise in (
        expected,
        lambda x: _FusedGlobalNorm.apply(x, expected.weight, expected.bias, *running, 0.1, 1e-5),
    ):
        expected.zero_grad()
        x = images.clone().requires_grad_()
        y = normalise(x)
        (y * towards).sum().backward()
        results.append([y, x.grad, expected.weight.grad.clone(), expected.bias.grad.clone()])
    for mine, torchs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(running[0], expected.running_mean)
    torch.testing.assert_close(running[1], expected.running_var)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"recompute": True}])
def test_nothing_in_a_step_makes_the_host_wait(options):
    engine = make_engine(ALONE, engine=EngineConfig(**options), device=GPU, precision="bf16")
    batch, watch = whole_batch().pin_memory(), Watch(GPU)
    for number in range(4):
        if number == 2:  # the first steps allocate and choose kernels
            torch.cuda.set_sync_debug_mode("error")
        try:
            watch.add(number, engine.step(on_device([batch] * options.get("accumulate", 1), GPU)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [verdict.number for verdict in watch.verdicts(all_steps=True)] == [0, 1, 2, 3]
