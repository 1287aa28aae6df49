"""Two processes compute the same as one: every computation here runs both ways and is compared.

Starting processes takes the most time. The fixture `two` therefore starts them once; they do all
computations and leave the results in files.
"""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from mcr.errors import UserError
from mcr.models.backbones import statistics_kept
from mcr.runs.gather import gather_rows
from mcr.runs.options import flatten
from mcr.training.batch_norm import synchronise_batch_norm
from mcr.training.checkpoint import list_checkpoints, load_checkpoint
from mcr.training.distributed import World
from mcr.training.engine import EngineConfig
from mcr.training.train import train
from tests.recipes import recipe
from tests.training.one_step import (
    ALONE,
    CPU,
    distance,
    make_engine,
    mixed_batch,
    one_step,
    share_of,
    whole_batch,
)
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
STEPS = {  # name -> options of `one_step`
    "global": {},
    "ghost": {"ghost_batch": 2, "group": 2},
    "parts": {"engine": EngineConfig(accumulate=2, recompute=True, bucket_mb=1)},
    "compressed": {"engine": EngineConfig(compress_gradients=True)},
    "balanced": {"balance_losses": True},
    "mixture": {"batch": mixed_batch()},
    "mixture in parts": {"batch": mixed_batch(), "engine": EngineConfig(accumulate=2)},
    "mixture of ghosts": {"batch": mixed_batch(), "ghost_batch": 2, "group": 2},
}


# --------------------------------------------------------------------------- what is computed


def normalised(world: World) -> dict:
    """Batch norm forward and backward, with images whose mean differs between processes."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.BatchNorm2d(6))
    nn.init.normal_(layer[0].weight)
    synchronise_batch_norm(layer)
    layer.double()
    images = (
        3 * torch.randn(8, 6, 5, 4, dtype=torch.double) + 5 * torch.arange(8)[:, None, None, None]
    )
    towards = torch.randn_like(images)
    mine = slice(world.rank * 8 // world.size, (world.rank + 1) * 8 // world.size)
    x = images[mine].clone().requires_grad_()
    with statistics_kept(layer):
        layer(x)
    y = layer(x)
    (y * towards[mine]).sum().backward()
    weight = torch.stack([layer[0].weight.grad, layer[0].bias.grad])[None]
    return {
        "output": gather_rows(y.detach())[0],
        "gradient": gather_rows(x.grad)[0],
        "of_parameters": gather_rows(weight)[0].sum(0),
        "buffers": dict(layer.named_buffers()),
    }


def broken_step(world: World) -> dict:
    """Make a step in which an action on the last process is NaN, and then a sound step."""
    engine = make_engine(world)
    before = [p.detach().clone() for p in engine.model.parameters()]
    batch = whole_batch()
    batch.actions[-1, 0, 0] = torch.nan
    broken = engine.step(share_of(batch, world)).flags
    after = engine.step(share_of(whole_batch(), world), wants_to_stop=world.rank == 0).flags
    unchanged = all(map(torch.equal, before, engine.model.parameters()))
    return {"flags": [broken.tolist(), after.tolist()], "unchanged": unchanged}


def refusal_of_one(world: World) -> str:
    """The message of the error that is raised here after `in_turn` failed on the last process."""

    def act():
        if world.rank == world.size - 1:
            raise UserError("no such file, says the last")

    with pytest.raises(UserError) as error:
        world.in_turn(act)
    return str(error.value)


def stop_this_process_at(step: int, run_dir: str) -> None:
    path = Path(run_dir) / "metrics.jsonl"
    while not (path.exists() and f'"step": {step}, "split": "train"' in path.read_text()):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


# --------------------------------------------------------------------------- where it is computed


def work(folder: Path, rank: int, size: int, ports: list[int], configs: dict) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(PATIENCE_S - 10)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as on Linux
    world = World.of_environment()
    results = {}
    with world.connected(CPU):
        results |= {name: one_step(world, **options) for name, options in STEPS.items()}
        results["normalised"] = normalised(world)
        results["broken"] = broken_step(world)
        results["refusal"] = refusal_of_one(world)
    torch.save(results, folder / f"results_{rank}.pt")
    if rank == 1:  # is asked to stop; the other has to follow
        arguments = (3, configs["stopped"].run_dir)
        threading.Thread(target=stop_this_process_at, args=arguments, daemon=True).start()
    for name, port in zip(("stopped", "whole"), ports[1:], strict=True):
        os.environ["MASTER_PORT"] = str(port)  # the old one may not be free yet
        train(configs[name])


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


@pytest.fixture(scope="module")
def configs(make_tiny, tmp_path_factory, reference):
    folder = tmp_path_factory.mktemp("runs")
    shards = shutil.copytree(reference, folder / "shards", copy_function=shutil.copyfile)
    same = {"data.root": str(shards), "data.workers": 1, "save_every": 4, "validate_every": 6}
    same |= {"optimizer.lr": 1e-5}  # so that rounding does not grow from step to step
    return {
        "whole": make_tiny(run_dir=str(folder / "whole"), steps=12, **same),
        "alone": make_tiny(run_dir=str(folder / "alone"), steps=12, **same),
        "killed": make_tiny(run_dir=str(folder / "killed"), steps=12, **same),
        "stopped": make_tiny(run_dir=str(folder / "stopped"), steps=2000, **same),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory, configs) -> list[dict]:
    """The results of both processes."""
    folder = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mcr.training.train"])
    ports = free_ports(3)
    processes = [
        context.Process(target=work, args=(folder, rank, 2, ports, configs)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    return [torch.load(folder / f"results_{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> dict:
    torch.set_num_threads(1)
    results = {name: one_step(ALONE, **options) for name, options in STEPS.items()}
    return results | {"normalised": normalised(ALONE), "broken": broken_step(ALONE)}


# --------------------------------------------------------------------------- comparisons


@pytest.mark.parametrize("name", sorted(STEPS.keys() - {"compressed"}))
def test_losses_metrics_and_gradients_are_those_of_one_process(two, one, name):
    for result in two:
        for part in ("metrics", "gradients", "buffers", "embeddings", "evaluation"):
            mine, expected = result[name][part], one[name][part]
            if part == "embeddings":
                mine, expected = {"": mine}, {"": expected}
            assert distance(mine, expected) < 1e-5, part


def test_negatives_come_from_all_processes_but_not_from_other_ghost_batches_or_data_sets(two):
    chances = {
        name: {key: float(v) for key, v in two[0][name]["metrics"].items() if "ive/chance" in key}
        for name in STEPS
    }
    assert chances["global"] == {"time_contrastive/chance": pytest.approx(1 / 5)}
    assert chances["ghost"] == {"time_contrastive/chance": pytest.approx(1 / 3)}
    mixed = "a/time_contrastive/chance", "b/time_contrastive/chance"
    assert chances["mixture"] == dict.fromkeys(mixed, pytest.approx(1 / 5))  # 3 other clips
    assert chances["mixture in parts"] == dict.fromkeys(mixed, pytest.approx(1 / 3))
    assert chances["mixture of ghosts"] == dict.fromkeys(mixed, pytest.approx(1 / 3))


def test_compressed_gradients_are_close(two, one):
    error = distance(two[0]["compressed"]["gradients"], one["global"]["gradients"])
    assert 1e-4 < error < 1e-2


def test_batch_norm_is_that_of_the_concatenated_images(two):
    """In one process, the layer is torch's own BatchNorm2d on all images."""
    torch.manual_seed(0)
    expected = normalised(ALONE)
    for result in two:
        for name in ("output", "gradient", "of_parameters"):
            torch.testing.assert_close(result["normalised"][name], expected[name])
        assert distance(result["normalised"]["buffers"], expected["buffers"]) < 1e-12


def test_a_step_that_is_not_finite_on_one_process_changes_nothing_on_any(two, one):
    for result in (*two, one):
        broken, after = result["broken"]["flags"]
        assert broken == [1, 1, 0]
        assert after == [0, 0, 1]  # a sound step, but the weights stay: the run is over
        assert result["broken"]["unchanged"]


def test_a_user_error_of_one_process_is_raised_by_all(two):
    assert [result["refusal"] for result in two] == ["no such file, says the last"] * 2


def lines(config) -> list[dict]:
    return [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").open()]


def test_a_whole_run_logs_what_one_process_logs(two, configs):
    train(configs["alone"])
    mine, expected = lines(configs["whole"]), lines(configs["alone"])
    assert [line["step"] for line in mine] == [line["step"] for line in expected]
    pulls = ("dynamics_alignment/embedding_gradient", "time_contrastive/embedding_gradient")
    health = ("gradient_norm", "action_prediction/r2", "embedding/effective_rank")
    for name in ("loss", *health, *pulls):
        values, targets = ([line[name] for line in run if name in line] for run in (mine, expected))
        assert values == pytest.approx(targets, rel=1e-2), name


def test_sigterm_to_one_process_stops_both_and_one_saves(two, configs):
    path = list_checkpoints(Path(configs["stopped"].run_dir) / "checkpoints")[-1]
    step = load_checkpoint(path)["step"]
    assert 3 <= step < configs["stopped"].steps
    assert max(line["step"] for line in lines(configs["stopped"])) == step


def test_another_number_of_processes_continues_the_run(two, configs):
    """A run that two processes began is continued by one."""
    config = configs["stopped"]
    config.steps = lines(config)[-1]["step"] + 1
    train(config)
    assert lines(config)[-1]["step"] == config.steps


# --------------------------------------------------------------------------- torchrun


def start_torchrun(config, *options: str) -> subprocess.Popen:
    """Start the run of `config` in two processes. The second one dies once, as it begins step 5."""
    defaults = flatten(recipe("mcr"))
    changed = {key: value for key, value in flatten(config).items() if value != defaults[key]}
    lists = {key: [*value] for key, value in changed.items() if isinstance(value, tuple)}
    arguments = [f"{key}={value}" for key, value in (changed | lists).items()]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "tests.training.killed_run", "5", "1", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_torchrun_restarts_a_killed_run_which_ends_in_the_same_bits(two, configs):
    config = configs["killed"]
    process = start_torchrun(config, "--max-restarts=1")
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    assert "resumed from" in output and output.count("checkpoint: ") == 1
    ends = [
        load_checkpoint(list_checkpoints(Path(configs[name].run_dir) / "checkpoints")[-1])
        for name in ("whole", "killed")
    ]
    for part in ("encoder", "objectives"):
        different = [
            key for key in ends[0][part] if not ends[0][part][key].equal(ends[1][part][key])
        ]
        assert not different
    steps = [(line["step"], line["split"]) for line in lines(config)]
    assert len(steps) == len(set(steps))
