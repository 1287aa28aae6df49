"""The options of the engine: those that must not change the result of a step, and those that do."""

import gc
import shutil
import weakref

import pytest
import torch

from mcr.data.batch import UNNAMED
from mcr.errors import UserError
from mcr.training.distributed import World
from mcr.training.engine import (
    EngineConfig,
    OptimizerConfig,
    compile_mode,
    make_deterministic,
)
from tests.training.one_step import (
    ALONE,
    NUM_CLIPS,
    distance,
    make_engine,
    one_step,
    share_of,
    whole_batch,
)

# The loss of a clip then depends on no other clip, except through batch norm.
WITHIN_THE_CLIP = {"negatives": "pair", "num_negatives": 0}


@pytest.fixture(scope="module")
def plain() -> dict:
    return one_step(ALONE)


def test_the_rate_falls_linearly_to_zero_at_the_end():
    constant, falling = OptimizerConfig(lr=0.5), OptimizerConfig(lr=0.5, decay_steps=4)
    assert [constant.rate(step, 6) for step in range(6)] == [0.5] * 6
    assert [falling.rate(step, 6) for step in range(6)] == [0.5, 0.5, 0.5, 0.375, 0.25, 0.125]
    assert [falling.rate(step, 2) for step in range(2)] == [0.5, 0.25]


@pytest.mark.parametrize("batch_norm", [{"frozen_bn": True}, {"ghost_batch": 2}])
def test_parts_give_the_gradient_of_the_whole_batch(batch_norm):
    options = WITHIN_THE_CLIP | batch_norm
    whole = one_step(ALONE, **options)
    parts = one_step(ALONE, engine=EngineConfig(accumulate=4), **options)
    assert distance(parts["gradients"], whole["gradients"]) < 1e-5
    assert parts["metrics"]["loss"] == pytest.approx(whole["metrics"]["loss"].item(), rel=1e-5)


def test_parts_have_batch_norm_statistics_of_their_own(plain):
    parts = one_step(ALONE, engine=EngineConfig(accumulate=4))
    assert distance(parts["gradients"], plain["gradients"]) > 1e-2


def test_recomputing_changes_neither_gradients_nor_running_statistics(plain):
    again = one_step(ALONE, engine=EngineConfig(recompute=True))
    assert distance(again["gradients"], plain["gradients"]) < 1e-12
    assert all(again["buffers"][n].equal(b) for n, b in plain["buffers"].items())


def test_recomputing_keeps_fewer_tensors():
    def kept_bytes(**options) -> int:
        engine = make_engine(ALONE, **options)
        tensors = {}

        def note(tensor):
            tensors[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            engine.model({UNNAMED: whole_batch()})
        return sum(tensors.values())

    parameters = sum(p.nbytes for p in make_engine(ALONE).model.parameters())
    plain = kept_bytes() - parameters
    assert kept_bytes(engine=EngineConfig(recompute=True)) < parameters + plain / 2


@pytest.mark.parametrize("recompute", [False, True])
def test_a_network_is_freed_with_its_engine(recompute):
    """At once, without Python's garbage collector: otherwise a GPU's memory stays in use."""
    gc.disable()
    try:
        engine = make_engine(ALONE, engine=EngineConfig(recompute=recompute))
        engine.step([{UNNAMED: whole_batch()}])
        weight = weakref.ref(engine.model.encoder.layer1[0].conv1.weight)
        del engine
        assert weight() is None
    finally:
        gc.enable()


def test_ghost_batches_are_normalised_separately():
    """The gradient of a batch of two ghost batches is the mean of their gradients."""
    options = WITHIN_THE_CLIP | {"ghost_batch": NUM_CLIPS // 2}
    together = one_step(ALONE, **options)
    halves = []
    for half in share_of(whole_batch(), ALONE, 2):
        engine = make_engine(ALONE, **WITHIN_THE_CLIP)
        engine.step([half])
        halves.append({n: p.grad for n, p in engine.model.named_parameters()})
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    assert distance(together["gradients"], mean) < 1e-5
    assert distance(together["gradients"], one_step(ALONE, **WITHIN_THE_CLIP)["gradients"]) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_encoder_computes_the_same(plain, mode):
    compiled = one_step(ALONE, engine=EngineConfig(compile=mode))
    assert distance(compiled["gradients"], plain["gradients"]) < 1e-6
    assert distance(compiled["buffers"], plain["buffers"]) < 1e-6
    assert distance(compiled["evaluation"], plain["evaluation"]) < 1e-5


def test_deterministic_mode_is_switched_on_and_off():
    make_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
    make_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": "fast"}, "engine.compile"),
        ({"accumulate": 0}, "engine.accumulate=0"),
        ({"recompute": True, "compile": "default"}, "exclude each other"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        EngineConfig(**options)


def test_compile_auto_is_for_long_runs_of_one_gpu():
    def mode(device="cuda", num_steps=5_000, num_clips=128, world=ALONE, **options):
        config, where = EngineConfig(**options), torch.device(device)
        return compile_mode(config, where, world, num_steps, num_clips)

    assert mode("cpu") == mode(num_steps=300) == mode(num_clips=32) == mode(recompute=True) == "off"
    assert mode(world=World(0, 2, 0)) == "off"
    assert mode("cpu", compile="reduce-overhead") == "reduce-overhead"
    assert mode() == ("default" if shutil.which("cc") or shutil.which("gcc") else "off")
