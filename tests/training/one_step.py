"""One training step of a ResNet-18 on eight made-up clips, in one process or in several."""

from dataclasses import fields

import torch

from mcr.data.batch import Batch, Dimensions
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


def share_of(batch: Batch, world: World, num_parts: int = 1) -> list[Batch]:
    """The clips that the process of `world` computes, for each part of the batch."""
    clips = torch.arange(NUM_CLIPS).reshape(num_parts, world.size, -1)[:, world.rank]
    return [
        Batch(**{f.name: getattr(batch, f.name)[part] for f in fields(batch)}) for part in clips
    ]


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
        Dimensions(14, 7, 3),
        statistics=None,
        **options,
    )
    if precision == "float64":  # rounding to float32 may switch a ReLU off
        model.encoder.double()
        model.encoder.conv1.register_forward_pre_hook(lambda _, images: (images[0].double(),))
        precision = "fp32"
    engine = engine or EngineConfig()
    optimizer = optimizer or OptimizerConfig(lr=1e-3)
    return Engine(model, engine, optimizer, precision, device, world, ema)


def one_step(world: World, batch: Batch | None = None, **options) -> dict:
    """Make one step on `batch` or `whole_batch()`. Returns metrics, gradients, statistics, ..."""
    engine = make_engine(world, **options)
    seed_draws(0, 0)
    batch = (batch or whole_batch()).to(engine.device)
    step = engine.step(share_of(batch, world, (options.get("engine") or EngineConfig()).accumulate))
    gathered, _ = gather_rows(step.embeddings)
    return {
        "metrics": world.mean(step.metrics) | embedding_health(step.embeddings),
        "gradients": {n: p.grad.clone() for n, p in engine.model.named_parameters()},
        "buffers": {n: b.clone() for n, b in engine.model.named_buffers()},
        "embeddings": gathered,
        "evaluation": world.mean(engine.evaluate(share_of(batch, world)[0])[0]),
    }


def distance(a: dict, b: dict) -> float:
    """||a - b|| / ||b|| over all tensors of two dicts."""
    assert a.keys() == b.keys()
    difference = sum((a[k].double() - b[k].double()).square().sum() for k in a)
    return (difference / sum(b[k].double().square().sum() for k in b)).sqrt().item()
