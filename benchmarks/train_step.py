#!/usr/bin/env python
"""Images per second of a training step, beside upstream's way and the machine's two limits.

    python benchmarks/train_step.py [--backbone resnet50] [--seconds 3] [--budget 420]

Prints a Markdown table. On a GPU: ResNet-50, batches of 160 to 2,560 images, 224 and 176 pixels,
all modes, in less than 8 minutes. On a CPU: a ResNet-18 on 64 pixels, in less than 2. Everything is
measured in this one job, the limits too: large products and convolutions, and a large copy.

Upstream's way: float32, NCHW, Adam without fused kernels, `.item()` for every metric of every step;
its images lie ready, cropped, on the device. Ours begins with uint8 frames and crops them in the
step. "Real data" reads the embedded sample's shards, decodes and sends them while the step runs;
the last column compares it with the same mode on a batch that lies ready. On a CPU time is what one
core gives to this process: neither other work on the machine nor the loader's processes count.

The arithmetic of an image is counted by torch (forward and backward). A ResNet-50 moves at best
346 MB per image of 224 pixels through memory (bfloat16, fused); other networks have no such figure.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from mcr.data.batch import NUM_FRAMES, Batch
from mcr.data.index import Index, open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.selection import SelectionConfig, select_episodes
from mcr.models.backbones import build_backbone
from mcr.models.preprocessing import Preprocessing
from mcr.objectives import ObjectivesConfig
from mcr.runs.processes import num_cores, processor
from mcr.training.distributed import World
from mcr.training.engine import Engine, EngineConfig, OptimizerConfig, make_deterministic, on_device
from mcr.training.pretrainer import Pretrainer
from mcr.training.watch import Watch

SOURCE = Path(__file__).parents[1] / "resources/sample_droid/1.0.0"
WEIGHTS = {"dynamics_alignment": 1.0, "action_prediction": 1.0, "time_contrastive": 1.0}
TRAFFIC_OF_RESNET50 = 346e6  # bytes per image of 224 x 224, forward and backward
Step = Callable[[Batch], object]


@dataclass
class Row:
    """One line of the table: a mode on a batch of `clips`."""

    way: str
    clips: int
    size: int
    precision: str = "bf16"
    engine: EngineConfig = field(default_factory=EngineConfig)
    real_data: bool = False


def rows_for_gpu() -> list[Row]:
    """In order of importance: the budget may cut the list short."""
    compiled, graphs = EngineConfig(compile="default"), EngineConfig(compile="reduce-overhead")
    return [
        Row("upstream's way", 32, 224, "fp32"),
        Row("ours, fp32", 32, 224, "fp32"),
        Row("ours, bf16", 32, 224),
        Row("ours, bf16", 128, 224),
        Row("ours, bf16", 512, 224),
        Row("ours, bf16", 128, 224, real_data=True),
        Row("ours, bf16, compiled", 128, 224, engine=compiled),
        Row("ours, bf16, compiled", 128, 224, engine=compiled, real_data=True),
        Row("ours, bf16, compiled, CUDA graphs", 32, 224, engine=graphs),
        Row("ours, bf16, recomputing", 512, 224, engine=EngineConfig(recompute=True)),
        Row("ours, bf16", 32, 224, real_data=True),
        Row("ours, bf16", 512, 224, real_data=True),
        Row("upstream's way", 32, 176, "fp32"),
        Row("ours, bf16", 128, 176),
        Row("ours, bf16, compiled", 128, 176, engine=compiled),
        Row("ours, bf16, compiled", 128, 176, engine=compiled, real_data=True),
        Row("ours, bf16, compiled", 512, 224, engine=compiled),
        Row("ours, bf16, compiled, CUDA graphs", 128, 224, engine=graphs),
    ]


def rows_for_cpu(clips: int, size: int) -> list[Row]:
    return [
        Row("upstream's way", clips, size, "fp32"),
        Row("ours", clips, size, "fp32"),
        Row("ours", clips, size, "fp32", real_data=True),
        Row("ours, recomputing", clips, size, "fp32", EngineConfig(recompute=True)),
        Row("ours, 4 parts", clips, size, "fp32", EngineConfig(accumulate=4)),
    ]


# --------------------------------------------------------------------------- the machine's limits


def clock(device: torch.device) -> float:
    """Seconds: of the wall, or on a CPU of this process's work."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_time(act: Callable[[], object], device: torch.device, rounds: int = 20) -> float:
    """Seconds of the fastest of `rounds` calls, after three that do not count."""
    times = []
    for number in range(rounds + 3):
        synchronise(device)
        began = clock(device)
        act()
        synchronise(device)
        if number >= 3:
            times.append(clock(device) - began)
    return min(times)


def peak_arithmetic(device: torch.device) -> dict[str, float]:
    """FLOP/s by precision: the better of a matrix product and a 3 x 3 convolution, random numbers.

    fp32 on a GPU is TF32, which is what torch uses for convolutions of float32.
    """
    size, images = (8192, 512) if device.type == "cuda" else (1024, 16)
    rates = {}
    torch.set_float32_matmul_precision("high")
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        kernel = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
        x = torch.randn(images, 256, 28, 28, device=device, dtype=dtype)
        kernel, x = (t.to(memory_format=torch.channels_last) for t in (kernel, x))
        product = 2 * size**3 / best_time(partial(torch.mm, a, b), device)
        convolution = partial(torch.nn.functional.conv2d, x, kernel, padding=1)
        rate = 2 * x.numel() * 256 * 9 / best_time(convolution, device)
        rates[name] = max(product, rate)
    torch.set_float32_matmul_precision("highest")
    return rates


def peak_bandwidth(device: torch.device) -> float:
    """Bytes/s, read and written, of copying 1 GiB (64 MiB on a CPU)."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_time(lambda: target.copy_(source), device)


def arithmetic_per_image(backbone: str, size: int) -> float:
    """FLOP of forward and backward, of the encoder; a multiplication and an addition are two."""
    with torch.device("meta"):
        network = build_backbone(backbone, size)
        images = torch.empty(2, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops() / len(images)


# --------------------------------------------------------------------------- steps


def make_model(backbone: str, size: int, clips: ClipDataset) -> Pretrainer:
    torch.manual_seed(0)
    return Pretrainer(
        backbone,
        Preprocessing.for_size(size),
        ObjectivesConfig(),
        WEIGHTS,
        clips.dimensions,
        statistics=None,
    )


def our_engine(model: Pretrainer, row: Row, device: torch.device) -> Engine:
    return Engine(model, row.engine, OptimizerConfig(), row.precision, device, World())


def our_step(engine: Engine, num_parts: int) -> Step:
    """As in the training loop: what became of a step is looked at one step later."""
    watch, numbers = Watch(engine.device), itertools.count()

    def step(batch: Batch) -> object:
        size = len(batch.samples) // num_parts
        parts = [slice(n * size, (n + 1) * size) for n in range(num_parts)]
        watch.add(
            next(numbers),
            engine.step(Batch(**{k: v[part] for k, v in vars(batch).items()}) for part in parts),
        )
        return watch.verdicts(all_steps=False)

    return step


def upstreams_step(model: Pretrainer, device: torch.device) -> Step:
    """What upstream's trainer does with a batch that its loader has cropped."""
    model.to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    ready: list[torch.Tensor] = []

    def step(batch: Batch) -> object:
        if not ready:
            ready.append(model.network_input(batch.frames, batch.crops).contiguous())
        embeddings = model.encoder(ready[0]).unflatten(0, (-1, NUM_FRAMES))
        losses, metrics = [], {}
        for objective in model.objectives.values():
            loss, of_objective = objective(embeddings, batch)
            losses.append(loss)
            metrics |= {name: value.item() for name, value in of_objective.items()}
            metrics["loss"] = loss.item()
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        return metrics

    return step


def resident_batch(clips: ClipDataset, count: int, device: torch.device) -> Batch:
    """One batch of real boxes and signals and random pixels, on the device."""
    batch = clips.load(list(range(count))).batch
    assert batch is not None
    random = torch.randint(0, 256, batch.frames.permute(0, 1, 3, 4, 2).shape, dtype=torch.uint8)
    return replace(batch, frames=random.permute(0, 1, 4, 2, 3)).to(device)


def real_batches(clips: ClipDataset, config: DataConfig, count: int, device: torch.device):
    loader = ClipLoader(clips, config, count, pin_memory=device.type == "cuda")
    return on_device(loader, device)


def images_per_second(
    step: Step, batches: Iterator[Batch], device: torch.device, seconds: float
) -> float:
    """Steady state, after a warm-up of at least three steps and a third of the time."""
    warm_until = clock(device) + seconds / 3
    for number in itertools.count():
        if number >= 3 and clock(device) > warm_until:
            break
        step(next(batches))
    synchronise(device)
    began, images, steps = clock(device), 0, 0
    while steps < 3 or clock(device) - began < seconds:
        batch = next(batches)
        step(batch)
        images += len(batch.samples) * NUM_FRAMES
        steps += 1
    synchronise(device)
    return images / (clock(device) - began)


def host_waits(engine: Engine, batch: Batch) -> str:
    """What in a step makes the host wait for the GPU; "" if nothing does."""
    for _ in range(4):  # compiling and recording of graphs may
        engine.step([batch])
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step([batch])
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


# --------------------------------------------------------------------------- report


class Report:
    """Prints rows as they come; knows the limits."""

    def __init__(self, backbone: str, device: torch.device):
        self._backbone, self._device = backbone, device
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
        self._arithmetic, self._bandwidth = peak_arithmetic(device), peak_bandwidth(device)
        print(
            f"hardware: {processor()}, {gpu}; torch {torch.__version__}, torchvision "
            f"{torchvision.__version__}\nmeasured limits: "
            + ", ".join(f"{rate / 1e12:.3g} TFLOP/s {n}" for n, rate in self._arithmetic.items())
            + f", {self._bandwidth / 1e9:.4g} GB/s; network: {backbone}\n"
        )
        columns = "way", "pixels", "images", "data", "images/s", "ratio to upstream's"
        limits = "of arithmetic", "of memory bandwidth", "GiB", "real / resident"
        print(f"| {' | '.join([*columns, *limits])} |\n|{'---|' * 10}", flush=True)
        self._rates: dict[tuple, float] = {}

    def add(self, row: Row, rate: float) -> None:
        key = (row.way, row.clips, row.size)
        if not row.real_data:
            self._rates[key] = rate
        upstreams = next(
            (r for (way, _, size), r in self._rates.items() if way[0] == "u" and size == row.size),
            None,
        )
        resident = self._rates.get(key) if row.real_data else None
        flop = arithmetic_per_image(self._backbone, row.size)
        cells = (
            *(row.way, row.size, f"{row.clips * NUM_FRAMES:,}"),
            *("real" if row.real_data else "resident", f"{rate:,.0f}"),
            f"{rate / upstreams:.2f}" if upstreams else "",
            f"{rate * flop / self._arithmetic[row.precision]:.1%}",
            self._share_of_bandwidth(row, rate),
            self._memory(),
            f"{rate / resident:.3f}" if resident else "",
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)

    def _share_of_bandwidth(self, row: Row, rate: float) -> str:
        if self._backbone != "resnet50":
            return ""
        bytes_each = TRAFFIC_OF_RESNET50 * (row.size / 224) ** 2
        bytes_each *= 2 if row.precision == "fp32" else 1
        return f"{rate * bytes_each / self._bandwidth:.1%}"

    def _memory(self) -> str:
        if self._device.type != "cuda":
            return ""
        return f"{torch.cuda.max_memory_allocated(self._device) / 2**30:.1f}"


def measure(
    row: Row, backbone: str, index: Index, config: DataConfig, device: torch.device, seconds: float
) -> float:
    """Images per second of one row."""
    episodes, _ = select_episodes(index, SelectionConfig(min_frames=3))
    clips = ClipDataset(index, episodes, config, seed=0)
    torch.compiler.reset()  # or many networks in one process would count as one that changes
    model = make_model(backbone, row.size, clips)
    resident = resident_batch(clips, row.clips, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if row.way.startswith("upstream"):
        step = upstreams_step(model, device)
    else:
        engine = our_engine(model, row, device)
        step = our_step(engine, row.engine.accumulate)
        if device.type == "cuda" and (problem := host_waits(engine, resident)):
            print(f"the host waits in a step of {row.way!r}: {problem}", file=sys.stderr)
    if row.real_data:
        batches = real_batches(clips, config, row.clips, device)
    else:
        batches = itertools.repeat(resident)
    return images_per_second(step, iter(batches), device, seconds)


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet50" if has_gpu else "resnet18")
    parser.add_argument("--source", type=Path, default=SOURCE, help="an RLDS version folder")
    seconds = 3.0 if has_gpu else 2.0
    parser.add_argument("--seconds", type=float, default=seconds, help="of measuring, per row")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1 if has_gpu else 2,
        help="rows are measured in turn, the best kept: a CPU is shared with others",
    )
    parser.add_argument("--workers", type=int, default=max(1, num_cores() - 1))
    parser.add_argument("--clips", type=int, default=8, help="per batch, on a CPU")
    parser.add_argument("--size", type=int, default=64, help="pixels, on a CPU")
    parser.add_argument("--budget", type=float, default=420, help="seconds, then no further row")
    arguments = parser.parse_args()
    began = time.monotonic()
    device = torch.device("cuda" if has_gpu else "cpu")
    if not has_gpu:
        torch.set_num_threads(1)
    make_deterministic(False)
    report = Report(arguments.backbone, device)
    rows = rows_for_gpu() if has_gpu else rows_for_cpu(arguments.clips, arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(arguments.source, Path(folder) / "index")
        config = DataConfig(workers=arguments.workers)
        best = [0.0] * len(rows)
        for turn, (number, row) in itertools.product(range(arguments.rounds), enumerate(rows)):
            if time.monotonic() - began > arguments.budget:
                print(f"out of time: {row}", file=sys.stderr)
                continue
            rate = measure(row, arguments.backbone, index, config, device, arguments.seconds)
            best[number] = max(best[number], rate)
            if turn == arguments.rounds - 1:
                report.add(row, best[number])


if __name__ == "__main__":
    main()
