"""The engine: one optimiser step of a Pretrainer, in one process or in one of several.

It decides how a step is computed: precision, memory layout, compilation, accumulation, averaging
over processes, and the optimiser. What a step computes is in `pretrainer.py`; the loop over steps
is in `train.py`. On a GPU nothing in a step makes the host wait. `monitor.py` reads later what the
host must know.
"""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from inspect import signature
from itertools import chain
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mcr.data.batch import MixedBatch
from mcr.errors import UserError, require_choice
from mcr.models.backbones import contexts_of_passes, statistics_kept
from mcr.models.blocks import blocks_of
from mcr.runs.gather import num_processes
from mcr.runs.ranges import check_fields, choice, whole
from mcr.training.batch_norm import GlobalBatchNorm2d, average_running_statistics
from mcr.training.distributed import World
from mcr.training.optimizer import OptimizerConfig, build_optimizer, rate_groups, step_unless
from mcr.training.pretrainer import Pretrainer
from mcr.training.weight_average import WeightAverage

_CHANNELS_LAST: dict[str, Any] = {"memory_format": torch.channels_last}  # not in torch 2.11's types
PRECISIONS = ("auto", "fp32", "bf16")
COMPILE_MODES = ("auto", "off", "default", "reduce-overhead", "max-autotune")


@dataclass
class EngineConfig:
    """How a step is computed: its time, memory and network traffic.

    accumulate:         compute the batch in this many parts, one after the other, and add their
                        gradients, which takes the memory of one part. Batch statistics and
                        negatives are then those of a part. Without either (frozen batch norm or
                        ghost batches; negatives within the clip or a group) the step equals that
                        of the whole batch
    recompute:          keep only the inputs of the encoder's blocks and compute the rest again for
                        the gradient: a fraction of the memory, a third more arithmetic
    compile:            torch.compile the crops and the encoder: "off", "default", "reduce-overhead"
                        (CUDA graphs) or "max-autotune". "auto" is "default" where compiling was
                        measured to pay: one process with a GPU and a C compiler, at least 64 clips
                        at a time, at least 2,000 steps, neither recomputing nor deterministic. See
                        resources/gpu.md. Elsewhere it is "off". Batch norm over several processes
                        splits the network into several compiled parts; ghost batches do not
    bucket_mb:          processes average gradients in pieces of this size, while the next ones are
                        being computed; larger pieces suit a slow network
    compress_gradients: average gradients as bfloat16: half the traffic, but rounded
    """

    accumulate: Annotated[int, whole(1)] = 1
    recompute: bool = False
    compile: Annotated[str, choice(COMPILE_MODES)] = "auto"
    bucket_mb: Annotated[int, whole(1)] = 25
    compress_gradients: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "engine.")
        if self.recompute and self.compile not in ("auto", "off"):
            raise UserError(
                "engine.recompute and engine.compile exclude each other: "
                "torch.compile decides by itself what to compute again"
            )


@dataclass
class Step:
    """The results of a step, on the device.

    metrics:    scalars of this process's share of the batch: "loss" and those of the Pretrainer;
                "gradient_norm" is that of the whole batch
    embeddings: of each data set, float32 [b, F, D] of the last part of this process's share
    batches:    the part that they were computed from
    flags:      float32 [3], the same on all processes; 1 where, on any process, (0) the loss was
                not finite, (1) the gradient norm was not finite, (2) a stop was asked for
    """

    metrics: dict[str, Tensor]
    embeddings: dict[str, Tensor]
    batches: MixedBatch
    flags: Tensor


class Engine:
    """Holds the network, its optimiser, and how both run on `device`."""

    def __init__(
        self,
        model: Pretrainer,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        precision: str,
        device: torch.device,
        world: World,
        ema: float = 0.0,
    ):
        """ema: see ModelConfig"""
        self.model = model.to(device).to(**_CHANNELS_LAST)
        self.device = device
        self._config, self._world = config, world
        self.autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=_wants_bf16(precision, device)
        )
        groups = rate_groups(model, model.encoder, optimizer)
        self._scales = [group.scale for group in groups]
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.parameter_names = [[names[p] for p in group.parameters] for group in groups]
        self._clip_norm = optimizer.clip_norm
        self.optimizer = build_optimizer(groups, optimizer)
        self.set_rate(optimizer.lr)
        self._broken = torch.zeros((), device=device)  # 1 from the first non-finite step on
        self.average = WeightAverage(model.encoder, ema) if ema else None
        if config.recompute:
            recompute_blocks(model.encoder)
        if config.compile not in ("auto", "off"):
            _compile(model, config.compile)
        self._network = _averaging_gradients(model, config) if world.size > 1 else model
        self._is_rehearsed = world.size == 1

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the steps that follow; that of the encoder may be a multiple."""
        self.rate = rate
        for scale, group in zip(self._scales, self.optimizer.param_groups, strict=True):
            group["lr"] = scale * rate

    def load_optimizer(self, state: dict[str, Any], names: list[list[str]] | None = None) -> None:
        """Restore the optimiser. Raises UserError if its parameters were grouped otherwise.

        names: the checkpoint's `parameter_names`, if its data sets may be others. Parameters that
               it lacks, or that had another shape, then begin anew.
        """
        if names is not None:
            state = self._fitting(state, names)
        found, wanted = len(state["param_groups"]), len(self._scales)
        if found != wanted:
            raise UserError(
                f"the checkpoint's optimiser has {found} groups of parameters, this one {wanted}: "
                "optimizer.kind, backbone_lr_scale and layer_decay cannot change during a run"
            )
        self.optimizer.load_state_dict(state)

    def _fitting(self, state: dict[str, Any], names: list[list[str]]) -> dict[str, Any]:
        """Return the state of the parameters that still exist, in the order that they have now."""
        known = dict(zip(chain(*names), range(sum(map(len, names))), strict=True))
        parameters = dict(self.model.named_parameters())
        fitting = {}
        for number, name in enumerate(chain(*self.parameter_names)):
            old = state["state"].get(known.get(name, -1))
            if old is not None and old["exp_avg"].shape == parameters[name].shape:
                fitting[number] = old
        return {"state": fitting, "param_groups": self.optimizer.state_dict()["param_groups"]}

    def step(self, parts: Iterable[MixedBatch], wants_to_stop: bool = False) -> Step:
        """Make one optimiser step with the next `config.accumulate` parts of the batch.

        A step whose loss or gradient is not finite on any process sets a flag and changes no
        weight; neither does any step after it.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        of_parts = []
        for number, part in enumerate(parts, start=1):
            if not self._is_rehearsed:
                self._rehearse(part)
            metrics, embeddings = self._add_gradients(part, number == self._config.accumulate)
            of_parts.append(metrics)
        metrics = _mean(of_parts)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._clip_norm:
            torch._foreach_mul_(gradients, (self._clip_norm / norm).clamp(max=1))
        stop = torch.full((), wants_to_stop, device=self.device)
        flags = torch.stack([~metrics["loss"].isfinite(), ~norm.isfinite(), stop]).float()
        flags = self._world.any(flags)
        torch.maximum(self._broken, flags[:2].amax(), out=self._broken)
        step_unless(self._broken, self.optimizer)
        average_running_statistics(self.model.encoder)
        if self.average:
            self.average.update()
        return Step(metrics | {"gradient_norm": norm}, embeddings, part, flags)

    def _rehearse(self, part: MixedBatch) -> None:
        """Compute gradients once and discard them, before the first step of several processes.

        During its first backward pass, DistributedDataParallel learns the order in which gradients
        become ready, and arranges its messages by it. Sums over three or more processes round
        differently in another arrangement. Without this pass, the first step after a resume would
        not equal, bit for bit, that of a run that was never interrupted.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        balances = copy.deepcopy(self.model.balances.state_dict())
        with torch.random.fork_rng(devices), statistics_kept(self.model):
            self._add_gradients(part, is_last=True)
        self.model.balances.load_state_dict(balances)
        self.optimizer.zero_grad(set_to_none=True)
        self._is_rehearsed = True

    def _add_gradients(
        self, part: MixedBatch, is_last: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Add the gradients of a part; after the last part, average the sum over processes.

        Returns (metrics, embeddings).
        """
        if self._config.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        alone = isinstance(self._network, DistributedDataParallel) and not is_last
        with self._network.no_sync() if alone else contextlib.nullcontext():  # type: ignore
            with self.autocast:
                loss, metrics, embeddings = self._network(part)
            (loss / self._config.accumulate).backward()
        detached = {name: of_set.detach() for name, of_set in embeddings.items()}
        return {"loss": loss.detach(), **metrics}, detached

    @torch.no_grad()
    def evaluate(self, batches: MixedBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return (metrics, embeddings) in eval mode. All processes must call this."""
        self.model.eval()
        with self.autocast:
            loss, metrics, embeddings = self.model(batches)
        return {"loss": loss, **metrics}, embeddings


def compile_mode(
    config: EngineConfig, device: torch.device, world: World, num_steps: int, num_clips: int
) -> str:
    """Return the mode that `config.compile` stands for in a run of `num_steps` steps.

    num_clips: clips that a process computes at a time
    """
    if config.compile != "auto":
        return config.compile
    can = device.type == "cuda" and bool(shutil.which("cc") or shutil.which("gcc"))
    plain = world.size == 1 and not config.recompute
    pays = num_steps >= 2_000 and num_clips >= 64
    exact = torch.are_deterministic_algorithms_enabled()
    return "default" if can and plain and pays and not exact else "off"


def _wants_bf16(precision: str, device: torch.device) -> bool:
    require_choice("precision", precision, PRECISIONS)
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def _averaging_gradients(model: Pretrainer, config: EngineConfig) -> DistributedDataParallel:
    # Buffers are equal on all processes already, see batch_norm.py, and need not be sent. The
    # option for that has different names in different versions of torch.
    names = signature(DistributedDataParallel).parameters
    sending = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    network = DistributedDataParallel(
        model,
        bucket_cap_mb=config.bucket_mb,
        gradient_as_bucket_view=True,
        **{sending: False},  # type: ignore[arg-type]
    )
    if config.compress_gradients:
        network.register_comm_hook(None, bf16_compress_hook)
    return network


def _compile(model: Pretrainer, mode: str) -> None:
    for module in model.encoder.modules():
        if isinstance(module, GlobalBatchNorm2d) and num_processes() > 1:
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    model.compiled_encode = torch.compile(model.encode, mode=mode)


def recompute_blocks(encoder: nn.Module) -> None:
    """Let each residual or transformer block keep only its input, and compute the rest twice.

    The second pass does not update the running statistics of batch normalisation.
    Raises UserError for a network whose blocks are not known.
    """
    blocks = blocks_of(encoder)
    if not blocks:
        raise UserError(
            f"engine.recompute=true knows no blocks of a {type(encoder).__name__}; leave it out"
        )
    for block in blocks.values():
        # A class and not `block.forward = ...`: a block that refers to itself would keep its
        # weights and gradients on the device until Python's garbage collector finds it.
        block.__class__ = type(block.__class__.__name__, (_Recomputed, type(block)), {})


class _Recomputed(nn.Module):
    """Goes before a block's own class, whose `forward` it calls once more for the gradient."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return checkpoint(
            super().forward,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing inside is random
            context_fn=partial(contexts_of_passes, self),
            **options,
        )


def _mean(of_parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(of_parts) == 1:
        return of_parts[0]
    return {name: torch.stack([m[name] for m in of_parts]).mean(0) for name in of_parts[0]}


def on_device(parts: Iterable[MixedBatch], device: torch.device) -> Iterator[MixedBatch]:
    """Yield each part on `device`. A GPU copies it while it computes the previous one."""
    if device.type != "cuda":
        yield from ({name: batch.to(device) for name, batch in part.items()} for part in parts)
        return
    copies = torch.cuda.Stream(device)
    for part in parts:
        with torch.cuda.stream(copies):
            moved = {name: batch.to(device) for name, batch in part.items()}
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copies)
        for batch in moved.values():
            for field in fields(batch):  # its memory is in use until the computation is done
                getattr(batch, field.name).record_stream(computing)
        yield moved


def make_deterministic(wanted: bool) -> None:
    """Switch deterministic algorithms on or off. If on, torch refuses operations that have none."""
    if wanted:  # CUDA reads this when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    # With benchmark = True, cuDNN tried all its kernels for 12 s before the first step of a
    # ResNet-50 on an H200. The fastest ran as fast as those that cuDNN chooses without trying
    # (4,752 against 4,740 images/s).
    torch.backends.cudnn.benchmark = False
