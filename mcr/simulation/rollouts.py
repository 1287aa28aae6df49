"""Rollouts of policies in many simulators at a time.

The simulators step in worker processes, which keep them over several rollouts. The policies, and so
the encoder, stay in this process. They receive the observations of all simulators as one batch, so
one call decides all next actions. There is no learning here and no torch. Called by
`evaluation.success_rates`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np

from mcr.errors import UserError
from mcr.runs.processes import num_cores, process_pool, progress_bar
from mcr.simulation.simulator import Observation, PictureConfig, Simulator
from mcr.simulation.tasks import make_simulator

# act(policies int64 [B], observations: key -> [B, ...]) -> float [B, A]; with `full_state` the
# observations are accompanied by "state", float32 [B, Z]
Act = Callable[[np.ndarray, Observation], np.ndarray]
# The number of a simulator, and what it is to do: apply an action, or reset to a seed.
Request = tuple[int, "np.ndarray | int"]
Response = tuple[Observation, bool]  # the observation, and whether the task is done


def run_rollouts(
    task: str,
    act: Act,
    slots: Sequence[tuple[int, int]],
    processes: int = 0,
    simulators: int = 0,
    pictures: PictureConfig | None = None,
    horizon: int = 0,
    full_state: bool = False,
) -> np.ndarray:
    """Run policies on scenes; returns whether the task was done at any step, bool [len(slots)].

    act: is called in this process, once for each step of all running rollouts, with their policy
        numbers and observations
    slots: (policy number, seed of the scene) of each rollout
    processes: 0 = one per core; with 1 the simulators run in this process
    simulators: how many run at the same time, 0 = one per process. More make larger batches.
    horizon: steps after which a rollout has failed, 0 = the task's own
    full_state: `act` is also given the true states of the scenes, `Simulator.state`, as "state"
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
        _simulators(make, processes, simulators, full_state) as (advance, horizon),
        progress_bar(None, task, "rollout", len(slots)) as bar,
    ):
        return _run(advance, act, slots, simulators, horizon, bar.update)


@dataclass
class _Rollout:
    """A running rollout: the number of its slot, and the next request to its simulator."""

    slot: int
    request: np.ndarray | int
    steps: int = -1  # the first request is a reset


def _run(
    advance: Callable[[list[Request]], list[Response]],
    act: Act,
    slots: Sequence[tuple[int, int]],
    simulators: int,
    horizon: int,
    report: Callable[[], object],
) -> np.ndarray:
    succeeded = np.zeros(len(slots), bool)
    waiting = deque(range(len(slots)))
    running: dict[int, _Rollout] = {}  # number of the simulator -> its rollout
    while waiting or running:
        for number in range(simulators):
            if number not in running and waiting:
                slot = waiting.popleft()
                running[number] = _Rollout(slot, slots[slot][1])
        responses = advance([(number, rollout.request) for number, rollout in running.items()])
        seen = {}
        for number, (observation, success) in zip(list(running), responses, strict=True):
            rollout = running[number]
            rollout.steps += 1
            if success or rollout.steps == horizon:
                succeeded[rollout.slot] = success
                del running[number]
                report()
            else:
                seen[number] = observation
        if seen:
            _request_actions(act, slots, running, seen)
    return succeeded


def _request_actions(
    act: Act,
    slots: Sequence[tuple[int, int]],
    running: dict[int, _Rollout],
    seen: dict[int, Observation],
) -> None:
    """Set the next request of every rollout in `seen` to its policy's action."""
    policies = np.array([slots[running[number].slot][0] for number in seen])
    keys = next(iter(seen.values()))
    batch = {key: np.stack([observation[key] for observation in seen.values()]) for key in keys}
    actions = np.asarray(act(policies, batch))
    if len(actions) != len(seen) or not np.isfinite(actions).all():
        raise ValueError(f"{len(seen)} observations were answered by the actions {actions}")
    for number, action in zip(seen, actions, strict=True):
        running[number].request = action


# --------------------------------------------------------------------------- worker processes


@contextlib.contextmanager
def _simulators(
    make: tuple, processes: int, simulators: int, full_state: bool
) -> Iterator[tuple[Callable[[list[Request]], list[Response]], int]]:
    """Yield a function that sends requests to all simulators, and the horizon of the task."""
    if processes == 1:
        _open(make, simulators)
        try:
            yield partial(_advance, full_state=full_state), _own_simulators[0].horizon
        finally:
            _close()
        return
    shares = [len(range(i, simulators, processes)) for i in range(processes)]
    with contextlib.ExitStack() as stack:
        # One pool for each process, because a simulator cannot move to another process.
        pools = [stack.enter_context(process_pool(1)) for _ in shares]
        futures = [
            pool.submit(_open, make, share) for pool, share in zip(pools, shares, strict=True)
        ]
        horizons = [future.result() for future in futures]

        def advance(requests: list[Request]) -> list[Response]:
            parts: list[list[Request]] = [[] for _ in pools]
            for number, request in requests:
                parts[number % processes].append((number // processes, request))
            responses: list[Future[list[Response]]] = [
                pool.submit(_advance, part, full_state)
                for pool, part in zip(pools, parts, strict=True)
            ]
            results = [iter(response.result()) for response in responses]
            return [next(results[number % processes]) for number, _ in requests]

        yield advance, horizons[0]


_own_simulators: list[Simulator] = []  # those of this process


def _open(make: tuple, number: int) -> int:
    """Make the simulators of this process; returns their horizon."""
    _own_simulators.extend(make_simulator(*make) for _ in range(number))
    return _own_simulators[0].horizon


def _advance(requests: list[Request], full_state: bool) -> list[Response]:
    responses = [_respond(_own_simulators[number], request) for number, request in requests]
    if not full_state:
        return responses
    states = [{"state": _own_simulators[number].state()} for number, _ in requests]
    return [(seen | state, done) for (seen, done), state in zip(responses, states, strict=True)]


def _respond(simulator: Simulator, request: np.ndarray | int) -> Response:
    if isinstance(request, np.ndarray):
        return simulator.step(request)
    return simulator.reset(int(request)), False


def _close() -> None:
    while _own_simulators:
        _own_simulators.pop().close()
