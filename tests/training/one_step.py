"""One training step of a ResNet-18 on eight made-up clips, in one process or in several."""

from dataclasses import fields, replace

import torch

from mcr.data.batch import UNNAMED, Batch, Dimensions, MixedBatch
from mcr.models.preprocessing import Preprocessing
from mcr.objectives import ObjectivesConfig
from mcr.objectives.dynamics_alignment import DynamicsAlignmentConfig
from mcr.objectives.time_contrastive import TimeContrastiveConfig
from mcr.runs.gather import gather_rows
from mcr.training.distributed import World
from mcr.training.engine import Engine, EngineConfig, OptimizerConfig
from mcr.training.pretrainer import Pretrainer, embedding_health
from mcr.training.train import seed_draws

CPU = torch.device("cpu")
ALONE = World()
NUM_CLIPS = 8
MIXTURE = {"a": Dimensions(14, 7, 3), "b": Dimensions(5, 2, 4)}  # half of the clips of each


def mixed_batch() -> MixedBatch:
    """`whole_batch()` with its second half turned into another robot's."""
    whole = whole_batch()
    halves = [
        Batch(**{f.name: getattr(whole, f.name)[part] for f in fields(whole)})
        for part in torch.arange(NUM_CLIPS).chunk(2)
    ]
    dims, generator = MIXTURE["b"], torch.Generator().manual_seed(5)
    other = replace(
        halves[1],
        frames=halves[1].frames[..., 4:, 8:],
        crops=torch.tensor([1.0, 2.0, 30.0, 36.0]).repeat(NUM_CLIPS // 2, 5, 1),
        actions=halves[1].actions[..., : dims.action],
        window_states=torch.randn(NUM_CLIPS // 2, 2, 4, dims.state, generator=generator),
        window_actions=torch.randn(NUM_CLIPS // 2, 2, 3, dims.action, generator=generator),
    )
    return {"a": halves[0], "b": other}


def whole_batch() -> Batch:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(NUM_CLIPS, *shape, generator=generator)

    frames = torch.randint(0, 256, (NUM_CLIPS, 5, 3, 40, 48), generator=generator)
    return Batch(
        frames=frames.byte(),
        crops=torch.tensor([2.0, 3.0, 36.0, 40.0]).repeat(NUM_CLIPS, 5, 1),
        colors=torch.tensor([[1.0], [0.0]]).repeat(NUM_CLIPS, 5, 1, 3),
        actions=normal(5, 7),
        window_states=normal(2, 3, 14),
        window_actions=normal(2, 2, 7),
        samples=torch.arange(NUM_CLIPS),
    )


def share_of(batch: Batch, world: World, num_parts: int = 1) -> list[MixedBatch]:
    """The clips that the process of `world` computes, for each part of the batch."""
    return shares_of({UNNAMED: batch}, world, num_parts)


def shares_of(batches: MixedBatch, world: World, num_parts: int = 1) -> list[MixedBatch]:
    """The same for the clips of several data sets."""
    parts: list[MixedBatch] = [{} for _ in range(num_parts)]
    for name, batch in batches.items():
        clips = torch.arange(len(batch)).reshape(num_parts, world.size, -1)[:, world.rank]
        for part, chosen in zip(parts, clips, strict=True):
            part[name] = Batch(**{f.name: getattr(batch, f.name)[chosen] for f in fields(batch)})
    return parts


def make_engine(
    world: World,
    *,
    engine=None,
    device=CPU,
    precision="float64",
    group=0,
    negatives="batch",
    num_negatives=3,
    optimizer=None,
    ema=0.0,
    dimensions=None,
    **options,
) -> Engine:
    torch.manual_seed(0)
    model = Pretrainer(
        "resnet18",
        Preprocessing.for_size(32),
        ObjectivesConfig(
            dynamics_alignment=DynamicsAlignmentConfig(negatives=negatives),
            time_contrastive=TimeContrastiveConfig(group=group, num_negatives=num_negatives),
        ),
        {"dynamics_alignment": 1.0, "action_prediction": 1.0, "time_contrastive": 1.0},
        dimensions or {UNNAMED: Dimensions(14, 7, 3)},
        statistics={},
        **options,
    )
    if precision == "float64":  # rounding to float32 may switch a ReLU off
        model.encoder.double()
        model.encoder.conv1.register_forward_pre_hook(lambda _, images: (images[0].double(),))
        precision = "fp32"
    engine = engine or EngineConfig()
    optimizer = optimizer or OptimizerConfig(lr=1e-3)
    return Engine(model, engine, optimizer, precision, device, world, ema)


def one_step(world: World, batch: Batch | MixedBatch | None = None, **options) -> dict:
    """Make one step on `batch` or `whole_batch()`. Returns metrics, gradients, statistics, ..."""
    batch = batch or whole_batch()
    batches = batch if isinstance(batch, dict) else {UNNAMED: batch}
    if len(batches) > 1:
        options["dimensions"] = MIXTURE
    engine = make_engine(world, **options)
    seed_draws(0, 0)
    batches = {name: batch.to(engine.device) for name, batch in batches.items()}
    parts = shares_of(batches, world, (options.get("engine") or EngineConfig()).accumulate)
    step = engine.step(parts)
    gathered = torch.cat([gather_rows(of_set)[0] for of_set in step.embeddings.values()])
    return {
        "metrics": world.mean(step.metrics) | embedding_health(step.embeddings),
        "gradients": {n: p.grad.clone() for n, p in engine.model.named_parameters()},
        "buffers": {n: b.clone() for n, b in engine.model.named_buffers()},
        "embeddings": gathered,
        "evaluation": world.mean(engine.evaluate(shares_of(batches, world)[0])[0]),
    }


def distance(a: dict, b: dict) -> float:
    """||a - b|| / ||b|| over all tensors of two dicts."""
    assert a.keys() == b.keys()
    difference = sum((a[k].double() - b[k].double()).square().sum() for k in a)
    return (difference / sum(b[k].double().square().sum() for k in b)).sqrt().item()
