"""What only a GPU can show of training. Every test is marked `gpu` and is skipped without one."""

import copy
import itertools
import json
import multiprocessing
import os
import socket
import traceback
from dataclasses import fields, replace
from pathlib import Path

# cuBLAS reads this when CUDA starts; without it, it may add in another order every time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mcr.data.batch import UNNAMED, Batch
from mcr.models.crops import crop_resize_batched, network_input
from mcr.training.batch_norm import _FusedGlobalNorm, _global_norm
from mcr.training.checkpoint import load_checkpoint
from mcr.training.distributed import World
from mcr.training.engine import EngineConfig, make_deterministic, on_device
from mcr.training.monitor import NonFinite, StepMonitor
from mcr.training.train import train
from tests.training.one_step import ALONE, CPU, distance, make_engine, one_step, whole_batch

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def exact_float32():
    """Convolutions in float32 and not in TF32, so that the CPU's results can be compared with."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
    make_deterministic(False)
    torch.compiler.reset()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def uncropped_batch() -> Batch:
    """Frames that the crop leaves as they are, so that the encoder's input is equal everywhere."""
    batch = whole_batch()
    whole_frame = torch.tensor([0.0, 0.0, 32.0, 32.0]).expand_as(batch.crops).contiguous()
    return replace(batch, frames=batch.frames[..., 4:36, 8:40].contiguous(), crops=whole_frame)


def first_step(device: torch.device, precision: str, **engine) -> dict:
    """Losses, gradients and embeddings of the first step on `uncropped_batch`.

    Nothing is drawn at random: a GPU's generator draws other negatives than the CPU's.
    """
    trainer = make_engine(
        ALONE,
        device=device,
        precision=precision,
        engine=EngineConfig(**engine),
        negatives="batch",
        num_negatives=0,
    )
    step = trainer.step([uncropped_batch().to(device)])
    return {
        "losses": {k: v.cpu() for k, v in step.metrics.items() if k.endswith("loss")},
        "gradients": {n: p.grad.cpu() for n, p in trainer.model.named_parameters()},
        "embeddings": {"all": step.embeddings.cpu()},
    }


# --------------------------------------------------------------------------- the encoder's input


def test_crops_and_colours_are_those_of_the_cpu(record_property):
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (4, 5, 3, 180, 320), generator=generator).byte()
    low, high = torch.tensor([0.0, 0, 60, 60]), torch.tensor([100.0, 200, 20, 60])
    crops = (low + high * torch.rand(4, 5, 4, generator=generator)).floor()
    colors = torch.tensor([[1.1], [-0.05]]) + 0.1 * torch.rand(4, 5, 2, 3, generator=generator)

    images, boxes = frames.flatten(0, 1), crops.flatten(0, 1)
    exact = crop_resize_batched(images, boxes, 64)
    pixels = (crop_resize_batched(images.to(GPU), boxes.to(GPU), 64).cpu() - exact).abs().max()
    record_property("largest difference of a pixel, of 255", f"{pixels:.3f}")
    assert pixels < 0.5  # float16 products; the CPU's training path rounds to whole numbers
    with torch.autocast("cuda", torch.bfloat16):
        in_training = crop_resize_batched(images.to(GPU), boxes.to(GPU), 64).cpu()
    assert (in_training - exact).abs().max() < 0.5

    on_cpu = network_input(frames, crops, 64, *IMAGENET, colors)
    on_gpu = network_input(frames.to(GPU), crops.to(GPU), 64, *IMAGENET, colors.to(GPU)).cpu()
    inputs = (on_gpu - on_cpu).abs().max() * min(IMAGENET[1]) * 255
    record_property("largest difference of an input, in pixel values", f"{inputs:.3f}")
    assert inputs < 1.5
    assert on_gpu.is_contiguous(memory_format=torch.channels_last)


# --------------------------------------------------------------------------- one step


def test_a_float32_step_is_that_of_the_cpu(record_property):
    on_cpu, on_gpu = first_step(CPU, "fp32"), first_step(GPU, "fp32")
    for name, value in on_cpu["losses"].items():
        torch.testing.assert_close(on_gpu["losses"][name], value, rtol=1e-4, atol=1e-5)
    difference = distance(on_gpu["gradients"], on_cpu["gradients"])
    record_property("relative difference of the gradient", f"{difference:.1e}")
    assert difference < 5e-3  # rounding may turn single ReLUs on or off


def test_a_bfloat16_step_is_near_that_of_float32(record_property):
    exact, rounded = first_step(GPU, "fp32"), first_step(GPU, "bf16")
    embeddings = distance(rounded["embeddings"], exact["embeddings"])
    gradients = distance(rounded["gradients"], exact["gradients"])
    record_property("relative difference of embeddings", f"{embeddings:.1e}")
    record_property("relative difference of the gradient", f"{gradients:.1e}")
    for name, value in exact["losses"].items():
        torch.testing.assert_close(rounded["losses"][name], value, rtol=0.02, atol=0.02)
    assert embeddings < 0.1  # bfloat16 keeps 8 bits: 0.4% for each rounding, 20 layers
    assert gradients < 0.6  # 0.32 on an H200; batch norm over 40 single pixels multiplies rounding


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"recompute": True}])
def test_nothing_in_a_step_makes_the_host_wait(options):
    engine = make_engine(ALONE, engine=EngineConfig(**options), device=GPU, precision="bf16")
    parts = [{UNNAMED: whole_batch().pin_memory()}] * options.get("accumulate", 1)
    monitor = StepMonitor(GPU)
    for number in range(4):
        if number == 2:  # the first steps allocate and choose kernels
            torch.cuda.set_sync_debug_mode("error")
        try:
            monitor.add(number, engine.step(on_device(parts, GPU)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [status.number for status in monitor.finished(wait=True)] == [0, 1, 2, 3]


def test_a_step_that_is_not_finite_changes_nothing_and_is_reported():
    engine = make_engine(ALONE, device=GPU, precision="bf16")
    monitor, statuses = StepMonitor(GPU), []
    for number in range(5):
        batch = whole_batch()
        if number == 2:
            batch.actions[3, 0, 0] = torch.nan
            sound = copy.deepcopy(engine.model.state_dict())
            moments = copy.deepcopy(engine.optimizer.state_dict()["state"])
        monitor.add(number, engine.step(on_device([{UNNAMED: batch.pin_memory()}], GPU)))
        statuses += monitor.finished(wait=False)
    statuses += monitor.finished(wait=True)
    assert [s.number for s in statuses if s.bad_loss] == [2]
    weights = {name for name, _ in engine.model.named_parameters()}
    after = engine.model.state_dict()
    assert all(torch.equal(after[name], sound[name]) for name in weights)
    for number, of_parameter in engine.optimizer.state_dict()["state"].items():
        assert torch.equal(of_parameter["exp_avg"], moments[number]["exp_avg"])
        assert torch.equal(of_parameter["step"], moments[number]["step"])


def test_recomputing_needs_less_memory_for_the_same_gradient(record_property):
    """Memory of a second step, when Adam's moments and the workspaces of cuBLAS exist already."""
    make_deterministic(True)
    clip = whole_batch()
    batch = Batch(**{f.name: torch.cat([getattr(clip, f.name)] * 64) for f in fields(clip)})
    batch = batch.to(GPU)
    kept, peaks, gradients = [], [], []
    for recompute in (False, True):
        engine = make_engine(
            ALONE, engine=EngineConfig(recompute=recompute), device=GPU, precision="fp32"
        )
        after_forward: list[int] = []
        engine.model.register_forward_hook(
            lambda *_, seen=after_forward: seen.append(torch.cuda.memory_allocated())
        )
        for number in range(2):
            engine.optimizer.zero_grad()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            torch.manual_seed(0)
            engine.step([{UNNAMED: batch}])
            if number == 0:
                gradients.append({n: p.grad.cpu() for n, p in engine.model.named_parameters()})
        kept.append(after_forward[-1] - before)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del engine
    for name, sizes in (("kept for the gradient", kept), ("peak of a step", peaks)):
        record_property(f"{name}, MiB", " and ".join(f"{size / 2**20:.0f}" for size in sizes))
    assert kept[1] < 0.7 * kept[0]  # 0.59 by the sizes of the tensors
    assert peaks[1] < 0.9 * peaks[0]  # 0.85 on an H100, where cuDNN's workspaces count too
    assert distance(*gradients) < 1e-5


# --------------------------------------------------------------------------- batches on their way


def test_the_copy_stream_never_hands_out_a_batch_too_early_or_too_late():
    """2,000 steps of a tiny model that keeps the GPU busy while the next batches are copied."""

    def losses(wait: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(3 * 40 * 48, 1, device=GPU)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(7)
        pool = [
            torch.randint(0, 256, whole_batch().frames.shape, generator=generator).byte()
            for _ in range(16)
        ]
        template = whole_batch()
        batches = (
            replace(template, frames=pool[number % 16]).pin_memory() for number in range(2000)
        )
        parts = ({UNNAMED: batch} for batch in batches)
        early = (part[UNNAMED] for part in on_device(parts, GPU))
        moved = (b.to(GPU) for b in batches) if wait else early
        found = []
        for batch in moved:
            if wait:
                torch.cuda.synchronize()
            torch.cuda._sleep(200_000)  # cycles: a copy that comes too early would be seen
            loss = model(batch.frames.flatten(2).float() / 255).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found).cpu()

    make_deterministic(True)
    assert torch.equal(losses(wait=False), losses(wait=True))


# --------------------------------------------------------------------------- batch norm


@pytest.fixture
def group_of_one():
    address = f"tcp://127.0.0.1:{free_port()}"
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
    results, statistics = [], []
    for form in (None, _FusedGlobalNorm.apply, _global_norm):
        expected.zero_grad()
        running = torch.zeros(6, device=GPU), torch.ones(6, device=GPU)
        x = images.clone().requires_grad_()
        if form is None:
            y = expected(x)
            running = expected.running_mean, expected.running_var
        else:
            y = form(x, expected.weight, expected.bias, *running, 0.1, 1e-5)
        (y * towards).sum().backward()
        results.append([y, x.grad, expected.weight.grad.clone(), expected.bias.grad.clone()])
        statistics.append(running)
    for mine in results[1:]:
        for ours, torchs in zip(mine, results[0], strict=True):
            torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)
    for ours in statistics[1:]:
        torch.testing.assert_close(ours[0], statistics[0][0])
        torch.testing.assert_close(ours[1], statistics[0][1])


def _one_of_two(folder: Path, rank: int, address: str) -> None:
    world = World(rank, 2, 0)
    try:
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
        torch.save(one_step(world, uncropped_batch(), device=GPU), folder / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


def test_two_processes_that_share_the_gpu_compute_what_one_does(tmp_path, record_property):
    """By gloo, because NCCL wants a GPU for each process.

    The frames need no rounding to be cropped: in float16, which products are summed first may
    depend on how many clips a process has.
    """
    start, address = multiprocessing.get_context("spawn"), f"tcp://127.0.0.1:{free_port()}"
    workers = [start.Process(target=_one_of_two, args=(tmp_path, r, address)) for r in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    errors = "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.error")))
    if "not support" in errors:
        pytest.skip(f"gloo cannot do this between GPU tensors: {errors.splitlines()[-1]}")
    assert [worker.exitcode for worker in workers] == [0, 0], errors
    alone = one_step(ALONE, uncropped_batch(), device=GPU)  # the encoder in float64
    both = [torch.load(tmp_path / f"{rank}.pt", map_location=GPU) for rank in range(2)]
    for mine in both:
        for name, value in alone["metrics"].items():
            torch.testing.assert_close(
                mine["metrics"][name], value, rtol=1e-4, atol=1e-5, check_dtype=False
            )
    assert all(
        torch.equal(value, both[1]["gradients"][name])
        for name, value in both[0]["gradients"].items()
    )
    difference = distance(both[0]["gradients"], alone["gradients"])
    record_property("relative difference of the gradient", f"{difference:.1e}")
    assert difference < 1e-4
    assert distance(both[0]["buffers"], alone["buffers"]) < 1e-6


# --------------------------------------------------------------------------- whole runs


def test_an_interrupted_run_goes_on_to_the_same_bits(tiny, tmp_path):
    def run(name: str, **options):
        path = tmp_path / name
        return train(tiny(run_dir=str(path), device="cuda", deterministic=True, **options))

    whole = load_checkpoint(run("whole"))
    run("parts", steps=2)
    parts = load_checkpoint(run("parts"))
    for part in ("encoder", "objectives"):
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())
    a, b = (checkpoint["optimizer"]["state"] for checkpoint in (whole, parts))
    assert all(torch.equal(a[n][k], b[n][k]) for n in a for k in a[n])


def test_a_run_that_breaks_names_the_samples(tiny, tmp_path):
    config = tiny(device="cuda", **{"optimizer.lr": 1e30, "steps": 20})
    with pytest.raises(NonFinite, match="is not finite"):
        train(config)
    report = json.loads((tmp_path / "run" / "non_finite.json").read_text())
    assert len(report["samples"]) == config.batch_size


# --------------------------------------------------------------------------- compiled


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_are_those_of_eager(mode, record_property):
    results = {}
    for compile in ("off", mode):
        engine = make_engine(
            ALONE, device=GPU, precision="fp32", engine=EngineConfig(compile=compile)
        )
        losses = []
        for batch in itertools.repeat(uncropped_batch().to(GPU), 4):
            torch.manual_seed(0)
            step = engine.step([{UNNAMED: batch}])
            losses.append(step.metrics["loss"].item())
            if len(losses) == 1:
                gradients = {n: p.grad.cpu() for n, p in engine.model.named_parameters()}
        results[compile] = losses, gradients
    (eager, of_eager), (compiled, of_compiled) = results.values()
    difference = distance(of_compiled, of_eager)
    record_property("losses", f"{eager} and {compiled}")
    record_property("relative difference of the gradient", f"{difference:.1e}")
    assert difference < 5e-3
    assert compiled == pytest.approx(eager, rel=0.02)
