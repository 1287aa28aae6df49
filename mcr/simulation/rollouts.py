"""Policies in simulation: many rollouts at a time, each round of steps decided by one call.

Simulators step in processes of their own, which keep them over several rollouts; the policies, and
so the encoder, stay in this process and see all simulators' observations as one batch. There is no
learning here and no torch. Called by `evaluation.success_rates`.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from mcr.errors import UserError
from mcr.runs.processes import num_cores, process_pool, progress_bar
from mcr.simulation.simulator import Observation, PictureConfig, Simulator
from mcr.simulation.tasks import make_simulator

# act(policies int64 [B], observations: key -> [B, ...]) -> float [B, A]
Act = Callable[[np.ndarray, Observation], np.ndarray]
# What a simulator, known by its number, shall do: take an action, or reset to a seed.
Order = tuple[int, "np.ndarray | int"]
Answer = tuple[Observation, bool]  # and whether the task is done


def run_rollouts(
    task: str,
    act: Act,
    slots: Sequence[tuple[int, int]],
    processes: int = 0,
    simulators: int = 0,
    pictures: PictureConfig | None = None,
    horizon: int = 0,
) -> np.ndarray:
    """Try policies on scenes: bool [len(slots)], whether the task was done at any step.

    act: called once a round, here, with the policy number and observation of every running rollout
    slots: (policy number, seed of the scene) of each rollout
    processes: 0 = one per core; with 1 the simulators live in this process
    simulators: how many run at the same time, 0 = one per process. More make larger batches.
    horizon: steps after which a rollout has failed, 0 = the task's
    raises: UserError as `make_simulator`, and when a process is killed.
    """
    if processes < 0 or simulators < 0:
        raise UserError(f"processes={processes}, simulators={simulators}: neither can be negative")
    if not slots:
        return np.zeros(0, bool)
    processes = min(processes or num_cores(), len(slots))
    simulators = min(max(simulators or processes, processes), len(slots))
    make = (task, pictures, horizon)
    with (
        _simulators(make, processes, simulators) as (advance, horizon),
        progress_bar(None, task, "rollout", len(slots)) as bar,
    ):
        return _run(advance, act, slots, simulators, horizon, bar.update)


@dataclass
class _Rollout:
    """One that is running: its slot, and the order for its simulator's next step."""

    slot: int
    order: np.ndarray | int
    steps: int = -1  # the first order is a reset


def _run(
    advance: Callable[[list[Order]], list[Answer]],
    act: Act,
    slots: Sequence[tuple[int, int]],
    simulators: int,
    horizon: int,
    report: Callable[[], object],
) -> np.ndarray:
    succeeded = np.zeros(len(slots), bool)
    waiting = deque(range(len(slots)))
    running: dict[int, _Rollout] = {}  # by simulator
    while waiting or running:
        for number in range(simulators):
            if number not in running and waiting:
                slot = waiting.popleft()
                running[number] = _Rollout(slot, slots[slot][1])
        answers = advance([(number, rollout.order) for number, rollout in running.items()])
        seen = {}
        for number, (observation, success) in zip(list(running), answers, strict=True):
            rollout = running[number]
            rollout.steps += 1
            if success or rollout.steps == horizon:
                succeeded[rollout.slot] = success
                del running[number]
                report()
            else:
                seen[number] = observation
        if seen:
            _decide(act, slots, running, seen)
    return succeeded


def _decide(
    act: Act,
    slots: Sequence[tuple[int, int]],
    running: dict[int, _Rollout],
    seen: dict[int, Observation],
) -> None:
    """Ask the policies, all at once, what comes next."""
    policies = np.array([slots[running[number].slot][0] for number in seen])
    keys = next(iter(seen.values()))
    batch = {key: np.stack([observation[key] for observation in seen.values()]) for key in keys}
    actions = np.asarray(act(policies, batch))
    if len(actions) != len(seen) or not np.isfinite(actions).all():
        raise ValueError(f"{len(seen)} observations were answered by the actions {actions}")
    for number, action in zip(seen, actions, strict=True):
        running[number].order = action


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a success rate (Wilson 1927)."""
    z = 1.96
    share, scale = successes / trials, 1 + z**2 / trials
    centre = share + z**2 / (2 * trials)
    margin = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


# --------------------------------------------------------------------------- where simulators live


@contextlib.contextmanager
def _simulators(
    make: tuple, processes: int, simulators: int
) -> Iterator[tuple[Callable[[list[Order]], list[Answer]], int]]:
    """Yields what advances the simulators, in this process or in others, and the horizon."""
    if processes == 1:
        _open(make, simulators)
        try:
            yield _advance, _company[0].horizon
        finally:
            _close()
        return
    shares = [len(range(i, simulators, processes)) for i in range(processes)]
    with contextlib.ExitStack() as stack:
        # One pool per process, because a simulator stays where it is.
        pools = [stack.enter_context(process_pool(1)) for _ in shares]
        futures = [
            pool.submit(_open, make, share) for pool, share in zip(pools, shares, strict=True)
        ]
        horizons = [future.result() for future in futures]

        def advance(orders: list[Order]) -> list[Answer]:
            parts: list[list[Order]] = [[] for _ in pools]
            for number, order in orders:
                parts[number % processes].append((number // processes, order))
            answers: list[Future[list[Answer]]] = [
                pool.submit(_advance, part) for pool, part in zip(pools, parts, strict=True)
            ]
            results = [iter(answer.result()) for answer in answers]
            return [next(results[number % processes]) for number, _ in orders]

        yield advance, horizons[0]


_company: list[Simulator] = []  # the simulators of this process


def _open(make: tuple, number: int) -> int:
    """Make the simulators of this process; their horizon."""
    _company.extend(make_simulator(*make) for _ in range(number))
    return _company[0].horizon


def _advance(orders: list[Order]) -> list[Answer]:
    return [_obey(_company[number], order) for number, order in orders]


def _obey(simulator: Simulator, order: np.ndarray | int) -> Answer:
    if isinstance(order, np.ndarray):
        return simulator.step(order)
    return simulator.reset(int(order)), False


def _close() -> None:
    while _company:
        _company.pop().close()
