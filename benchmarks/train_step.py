#!/usr/bin/env python
"""Images per second of a training step, beside upstream's way and the machine's two limits.

    python benchmarks/train_step.py [--seconds 3] [--budget 420] [--json FILE] [--profile]
    python benchmarks/train_step.py --rows "176 px|vit_s|CUDA graphs"

Prints a Markdown table. On a GPU: ResNet-50 and ViT-S/16, batches of 160 to 2,560 images, 224 and
176 pixels, eager and compiled. On a CPU: a ResNet-18 on 64 pixels, in less than 2 minutes. This one
process measures all rows, and the limits too: large products and convolutions, and a large copy.
Rows are in order of importance, and small before large, because --budget may cut the list short.
--rows chooses rows by a regular expression; --list prints what it is compared with. A row whose
tensors do not fit into the GPU's memory is reported as one that does not fit.

Upstream's way is float32, NCHW, Adam without fused kernels, and `.item()` for every metric of every
step; its images lie ready, cropped, on the device. Ours begins with uint8 frames and crops them in
the step. "Real data" reads the embedded sample's shards, decodes and sends them while the step
runs; the last column compares it with the same mode on a batch that lies ready. "First step" is the
time from an untouched network to the end of its first step; it holds compilation and the choice of
kernels. On a CPU, time is what one core gives to this process: neither other work on the machine
nor the loader's processes count.

Torch counts the arithmetic of an image (forward and backward). A ResNet-50 moves at best 346 MB per
image of 224 pixels through memory (bfloat16, fused); other networks have no such figure.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torchvision
from einops import rearrange
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mcr.data.batch import NUM_FRAMES, UNNAMED, Batch
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.selection import SelectionConfig, select_episodes
from mcr.models.backbones import build_backbone
from mcr.models.preprocessing import Preprocessing
from mcr.objectives import ObjectivesConfig
from mcr.runs.atomic import write_text
from mcr.runs.processes import num_cores, processor
from mcr.training.distributed import World
from mcr.training.engine import Engine, EngineConfig, OptimizerConfig, make_deterministic, on_device
from mcr.training.monitor import StepMonitor
from mcr.training.pretrainer import Pretrainer

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
    backbone: str = "resnet50"
    profiled: bool = False  # on a GPU, if --profile is given

    def __str__(self) -> str:
        images = f"{self.clips * NUM_FRAMES} images"
        return f"{self.backbone}, {self.way}, {images}, {self.size} px, {self.data}"

    @property
    def data(self) -> str:
        return "real" if self.real_data else "resident"


def rows_for_gpu() -> list[Row]:
    """In order of importance, and small before large: the budget may cut the list short."""
    compiled, graphs = EngineConfig(compile="default"), EngineConfig(compile="reduce-overhead")
    small = "vit_s_16"
    return [
        Row("upstream's way", 32, 224, "fp32"),
        Row("ours", 128, 224, profiled=True),
        Row("ours", 128, 224, real_data=True),
        Row("ours, compiled", 128, 224, engine=compiled, profiled=True),
        Row("ours, compiled", 128, 224, engine=compiled, real_data=True),
        Row("ours", 32, 224),
        Row("ours, float32", 32, 224, "fp32"),
        Row("ours, recomputing", 128, 224, engine=EngineConfig(recompute=True)),
        Row("upstream's way", 32, 176, "fp32"),
        Row("ours", 128, 176),
        Row("ours", 128, 224, backbone=small),
        Row("ours", 64, 224, backbone="vit_b_16"),
        Row("ours, compiled, CUDA graphs", 32, 224, engine=graphs),
        Row("ours, compiled", 128, 224, engine=compiled, backbone=small),
        Row("ours, compiled", 128, 176, engine=compiled),
        Row("ours, compiled", 128, 176, engine=compiled, real_data=True),
        Row("ours, recomputing", 512, 224, engine=EngineConfig(recompute=True)),
        Row("ours", 512, 224),
        Row("ours, compiled", 512, 224, engine=compiled),
    ]


def rows_for_cpu(clips: int, size: int) -> list[Row]:
    row = partial(Row, clips=clips, size=size, precision="fp32", backbone="resnet18")
    return [
        row("upstream's way"),
        row("ours"),
        row("ours", real_data=True),
        row("ours, recomputing", engine=EngineConfig(recompute=True)),
        row("ours, 4 parts", engine=EngineConfig(accumulate=4)),
    ]


# --------------------------------------------------------------------------- the machine's limits


def clock(device: torch.device) -> float:
    """Seconds: of the wall, or on a CPU of this process's work."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_time(act: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest call of 20 on a GPU or 5 on a CPU, after two that do not count."""
    times = []
    for _ in range(22 if device.type == "cuda" else 7):
        synchronise(device)
        began = clock(device)
        act()
        synchronise(device)
        times.append(clock(device) - began)
    return min(times[2:])


def peak_arithmetic(device: torch.device) -> dict[str, float]:
    """FLOP/s by precision: the better of a matrix product and a 3 x 3 convolution, random numbers.

    fp32 on a GPU is TF32, which is what torch uses for convolutions of float32.
    """
    size, images = (8192, 512) if device.type == "cuda" else (512, 4)
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
        {UNNAMED: clips.dimensions},
        statistics={},
    )


def our_engine(model: Pretrainer, row: Row, device: torch.device) -> Engine:
    return Engine(model, row.engine, OptimizerConfig(), row.precision, device, World())


def our_step(engine: Engine, num_parts: int) -> Step:
    """A step as in the training loop, which reads the flags of a step one step later."""
    monitor, numbers = StepMonitor(engine.device), itertools.count()

    def step(batch: Batch) -> object:
        size = len(batch.samples) // num_parts
        parts = [slice(n * size, (n + 1) * size) for n in range(num_parts)]
        monitor.add(
            next(numbers),
            engine.step(
                {UNNAMED: Batch(**{k: v[part] for k, v in vars(batch).items()})} for part in parts
            ),
        )
        return monitor.finished(wait=False)

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
    shape = rearrange(batch.frames, "b f c h w -> b f h w c").shape
    random = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    return replace(batch.to(device), frames=rearrange(random, "b f h w c -> b f c h w"))


def real_batches(clips: ClipDataset, config: DataConfig, count: int, device: torch.device):
    loader = ClipLoader(clips, config, count, pin_memory=device.type == "cuda")
    parts = ({UNNAMED: batch} for batch in loader)
    return (part[UNNAMED] for part in on_device(parts, device))


def images_per_second(
    step: Step, batches: Iterator[Batch], device: torch.device, seconds: float, warm_up: int = 3
) -> float:
    """Steady state, after a warm-up of at least so many steps and a third of the time."""
    warm_until = clock(device) + seconds / 3
    for number in itertools.count():
        if number >= warm_up and clock(device) > warm_until:
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
        engine.step([{UNNAMED: batch}])
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.step([{UNNAMED: batch}])
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


# --------------------------------------------------------------------------- report


COLUMNS = {
    "network": "network",
    "way": "way",
    "pixels": "pixels",
    "images": "images",
    "data": "data",
    "images/s": "images_per_s",
    "ratio to upstream's": "ratio",
    "of arithmetic": "of_arithmetic",
    "of memory bandwidth": "of_bandwidth",
    "GiB": "gib",
    "first step, s": "first_step_s",
    "real / resident": "real_over_resident",
}


class Report:
    """Knows the machine's limits; prints rows as they come and keeps them in a JSON file."""

    def __init__(self, device: torch.device, path: Path | None):
        self._device, self._path = device, path
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
        self._arithmetic, self._bandwidth = peak_arithmetic(device), peak_bandwidth(device)
        self.content: dict = {
            "hardware": f"{processor()}, {gpu}; torch {torch.__version__}, torchvision "
            f"{torchvision.__version__}",
            "limits": {f"{n}_flop_per_s": rate for n, rate in self._arithmetic.items()}
            | {"bytes_per_s": self._bandwidth},
            "rows": [],
        }
        limits = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {n}" for n, rate in self._arithmetic.items())
        print(
            f"hardware: {self.content['hardware']}\nmeasured limits: {limits}, "
            f"{self._bandwidth / 1e9:.4g} GB/s\n"
        )
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)

    def save(self) -> None:
        if self._path:
            write_text(self._path, json.dumps(self.content, indent=1))

    def add(self, row: Row, rate: float, first_step_s: float) -> None:
        flop = arithmetic_per_image(row.backbone, row.size)
        found = self._names(row) | {
            "images_per_s": round(rate),
            "ratio": self._ratio(rate, network=row.backbone, way="upstream's way", pixels=row.size),
            "of_arithmetic": f"{rate * flop / self._arithmetic[row.precision]:.1%}",
            "of_bandwidth": self._share_of_bandwidth(row, rate),
            "gib": self._memory(),
            "first_step_s": round(first_step_s, 1),
        }
        same = {key: found[key] for key in ("network", "way", "pixels", "images")}
        found["real_over_resident"] = (
            self._ratio(rate, **same, data="resident") if row.real_data else None
        )
        if row.way == "upstream's way":
            found["ratio"] = 1.0
        self._keep(found)

    def add_misfit(self, row: Row, wanted: float) -> None:
        """Note that a row does not fit into the GPU: it wanted at least `wanted` bytes."""
        self._keep(
            dict.fromkeys(COLUMNS.values())
            | self._names(row)
            | {"images_per_s": "does not fit", "gib": f"at least {wanted / 2**30:.1f}"}
        )

    def _names(self, row: Row) -> dict:
        return {
            "network": row.backbone,
            "way": row.way,
            "pixels": row.size,
            "images": row.clips * NUM_FRAMES,
            "data": row.data,
        }

    def _keep(self, found: dict) -> None:
        self.content["rows"].append(found)
        cells = ("" if (v := found[key]) is None else v for key in COLUMNS.values())
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        self.save()

    def _ratio(self, rate: float, **of_other: object) -> float | None:
        """rate over that of the earlier row with these values; None if there is none."""
        for row in self.content["rows"]:
            if of_other.items() <= row.items() and row["images_per_s"] != "does not fit":
                return round(rate / row["images_per_s"], 3)
        return None

    def _share_of_bandwidth(self, row: Row, rate: float) -> str | None:
        if row.backbone != "resnet50":
            return None
        bytes_each = TRAFFIC_OF_RESNET50 * (row.size / 224) ** 2
        bytes_each *= 2 if row.precision == "fp32" else 1
        return f"{rate * bytes_each / self._bandwidth:.1%}"

    def add_profile(self, profiled: dict) -> None:
        self.content.setdefault("profiles", []).append(profiled)
        self.save()
        print_profile(profiled)

    def _memory(self) -> float | None:
        if self._device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self._device) / 2**30, 1)


@dataclass
class Bench:
    """Data and device that all rows share."""

    clips: ClipDataset
    config: DataConfig
    device: torch.device
    seconds: float

    def measure(self, row: Row) -> tuple[float, float]:
        """(images per second of one row, seconds until its first step was over)."""
        device = self.device
        free_memory(device)
        resident = resident_batch(self.clips, row.clips, device)
        step, engine = self.prepare(row)
        began = time.perf_counter()
        step(resident)
        synchronise(device)
        first = time.perf_counter() - began
        if engine and device.type == "cuda" and (problem := host_waits(engine, resident)):
            print(f"the host waits in a step of {row.way!r}: {problem}", file=sys.stderr)
        batches, warm_up = itertools.repeat(resident), 3
        if row.real_data:
            batches = real_batches(self.clips, self.config, row.clips, device)
            # Until all that is prefetched has been replaced, memory is being allocated for it.
            warm_up = self.config.workers * self.config.prefetch + 4
        return images_per_second(step, iter(batches), device, self.seconds, warm_up), first

    def prepare(self, row: Row) -> tuple[Step, Engine | None]:
        model = make_model(row.backbone, row.size, self.clips)
        if row.way.startswith("upstream"):
            return upstreams_step(model, self.device), None
        engine = our_engine(model, row, self.device)
        return our_step(engine, row.engine.accumulate), engine

    def profile(self, row: Row, num_steps: int = 5) -> dict:
        """The kernels of a step: ms, calls and share of each; GPU only."""
        free_memory(self.device)
        resident = resident_batch(self.clips, row.clips, self.device)
        step, _ = self.prepare(row)
        for _ in range(4):
            step(resident)
        synchronise(self.device)
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            for _ in range(num_steps):
                step(resident)
            synchronise(self.device)
        kernels = [k for k in profiled.key_averages() if k.self_device_time_total > 0]
        kernels.sort(key=lambda k: -k.self_device_time_total)
        total = sum(k.self_device_time_total for k in kernels)
        convolutions = sum(k.self_device_time_total for k in kernels if is_convolution(k.key))
        return {
            "row": vars(row) | {"engine": vars(row.engine)},
            "gpu_ms_per_step": total / num_steps / 1e3,
            "share_not_convolution": 1 - convolutions / total,
            "kernels": [
                {
                    "name": k.key,
                    "ms_per_step": k.self_device_time_total / num_steps / 1e3,
                    "calls_per_step": k.count / num_steps,
                    "share": k.self_device_time_total / total,
                }
                for k in kernels[:40]
            ],
        }


def free_memory(device: torch.device) -> None:
    """Give back what earlier rows used, their compiled code included."""
    torch.compiler.reset()  # or many networks in one process would count as one that changes
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def memory_wanted(error: torch.OutOfMemoryError, device: torch.device) -> float:
    """Return the bytes that a row held at most, plus those that it then asked for in vain."""
    asked = re.search(r"Tried to allocate ([\d.]+) ([KMG])iB", str(error))
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    last = float(asked[1]) * units[asked[2]] if asked else 0.0
    return torch.cuda.max_memory_allocated(device) + last


def is_convolution(kernel: str) -> bool:
    """By its name, whether a kernel of cuDNN or cuBLAS does convolutions.

    Triton's kernels are named after all that they stand beside, but do no convolutions themselves.
    """
    names = ("conv", "xmma", "cutlass", "fprop", "dgrad", "wgrad", "gemm", "nvjet", "sm90_")
    return not kernel.startswith("triton") and any(name in kernel.lower() for name in names)


def print_profile(profiled: dict, count: int = 12) -> None:
    row = profiled["row"]
    print(
        f"\n{row['backbone']}, {row['way']}, {row['clips'] * NUM_FRAMES} images: "
        f"{profiled['gpu_ms_per_step']:.1f} ms of kernels per step, "
        f"{profiled['share_not_convolution']:.1%} of it not convolution\n"
    )
    print("| ms | calls | share | kernel |\n|---|---|---|---|")
    for k in profiled["kernels"][:count]:
        print(
            f"| {k['ms_per_step']:.2f} | {k['calls_per_step']:.0f} | {k['share']:.1%} | "
            f"`{k['name'][:90]}` |"
        )
    sys.stdout.flush()


def main() -> None:
    has_gpu = torch.cuda.is_available()
    arguments = parse_arguments(has_gpu)
    rows = chosen_rows(arguments, has_gpu)
    began = time.monotonic()
    device = torch.device("cuda" if has_gpu else "cpu")
    if not has_gpu:
        torch.set_num_threads(1)
    make_deterministic(False)
    report = Report(device, arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(arguments.source, Path(folder) / "index", workers=1)
        config = DataConfig(workers=arguments.workers, prefetch=2)
        episodes, _ = select_episodes(index, SelectionConfig(min_frames=3))
        clips = ClipDataset(index, episodes, config, seed=0)
        bench = Bench(clips, config, device, arguments.seconds)
        best = [0.0] * len(rows)
        for turn, (number, row) in itertools.product(range(arguments.rounds), enumerate(rows)):
            if time.monotonic() - began > arguments.budget:
                print(f"out of time: {row}", file=sys.stderr)
                continue
            try:
                rate, first_step_s = bench.measure(row)
            except torch.OutOfMemoryError as error:
                report.add_misfit(row, memory_wanted(error, device))
                continue
            best[number] = max(best[number], rate)
            if turn == arguments.rounds - 1:
                report.add(row, best[number], first_step_s)
            if has_gpu and arguments.profile and row.profiled:
                report.add_profile(bench.profile(row))


def chosen_rows(arguments: argparse.Namespace, has_gpu: bool) -> list[Row]:
    rows = rows_for_gpu() if has_gpu else rows_for_cpu(arguments.clips, arguments.size)
    chosen = [row for row in rows if re.search(arguments.rows, str(row))]
    if arguments.list:
        print(*rows_for_gpu(), sep="\n")
        sys.exit()
    if not chosen:
        names = "\n".join(map(str, rows))
        sys.exit(f"error: --rows {arguments.rows!r} matches none of these rows:\n{names}")
    return chosen


def parse_arguments(has_gpu: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=SOURCE, help="an RLDS version folder")
    seconds = 3.0 if has_gpu else 2.0
    parser.add_argument("--seconds", type=float, default=seconds, help="of measuring, per row")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1 if has_gpu else 2,
        help="rows are measured in turn, the best kept: a CPU is shared with others",
    )
    workers = max(1, min(8, num_cores() - 1))
    parser.add_argument("--workers", type=int, default=workers, help="loader processes")
    parser.add_argument("--clips", type=int, default=8, help="per batch, on a CPU")
    parser.add_argument("--size", type=int, default=64, help="pixels, on a CPU")
    parser.add_argument("--budget", type=float, default=420, help="seconds, then no further row")
    parser.add_argument("--rows", default="", help="only rows that match this regular expression")
    parser.add_argument("--list", action="store_true", help="print a GPU's rows; measure nothing")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--profile", action="store_true", help="list the heaviest kernels (GPU)")
    arguments = parser.parse_args()
    if arguments.rehearse:
        arguments.clips, arguments.size, arguments.seconds, arguments.rounds = 8, 32, 0.3, 1
        arguments.budget = float("inf")  # every row has to run
    return arguments


if __name__ == "__main__":
    main()
