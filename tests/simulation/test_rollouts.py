"""Rollouts: results do not depend on the number of processes; one call acts for all."""

import multiprocessing

import numpy as np
import pytest

from mcr.errors import UserError
from mcr.simulation.rollouts import run_rollouts
from mcr.simulation.simulator import PictureConfig
from mcr.simulation.tasks import make_simulator

TASK, PICTURES = "metaworld/button-press", PictureConfig(picture_size=32)
SEEDS = (3, 4, 5)


@pytest.fixture(scope="module")
def plans():
    """Actions that succeed for each seed. Scenes repeat exactly, so they succeed again."""
    simulator = make_simulator(TASK, PICTURES)
    found = []
    for seed in SEEDS:
        simulator.reset(seed)
        plan, success = [], False
        while not success:
            plan.append(simulator.expert())
            _, success = simulator.step(plan[-1])
        found.append(plan)
    simulator.close()
    return found


class Replay:
    """Policy p repeats plan p; a policy without a plan stands still."""

    def __init__(self, plans):
        self._plans = [iter(plan) for plan in plans]
        self.batches = []

    def __call__(self, policies, observations):
        assert observations["corner2_image"].shape == (len(policies), 32, 32, 3)
        assert observations["proprioception"].shape == (len(policies), 4)
        assert policies.dtype == np.int64
        self.batches.append(len(policies))
        return np.stack([self._next(policy) for policy in policies])

    def _next(self, policy):
        return next(self._plans[policy]) if policy < len(self._plans) else np.zeros(4)


@pytest.mark.parametrize(("processes", "simulators"), [(1, 1), (1, 3), (2, 3), (2, 0)])
def test_successes_do_not_depend_on_processes_and_simulators(plans, processes, simulators):
    slots = [(0, SEEDS[0]), (9, 3), (1, SEEDS[1]), (2, SEEDS[2]), (9, 4)]
    act = Replay(plans)
    horizon = max(len(plan) for plan in plans)
    succeeded = run_rollouts(TASK, act, slots, processes, simulators, PICTURES, horizon)
    assert succeeded.dtype == bool and succeeded.tolist() == [True, False, True, True, False]
    assert max(act.batches) == (simulators or processes)
    assert sum(act.batches) == sum(map(len, plans)) + 2 * horizon


def test_the_true_state_is_given_on_request_alone(plans):
    blind, given = PictureConfig(picture_size=0), []

    def act(policies, observations):
        given.append(observations)
        return np.zeros((len(policies), 4))

    for processes in (1, 2):
        run_rollouts(TASK, act, [(0, 3), (0, 4)], processes, 2, blind, 2, full_state=True)
    run_rollouts(TASK, act, [(0, 3)], 1, 1, blind, horizon=1)
    assert [set(each) for each in given[::4]] == [{"proprioception", "state"}, {"proprioception"}]
    simulator = make_simulator(TASK, blind)
    for place, seed in enumerate((3, 4)):
        simulator.reset(seed)
        for step in (0, 1):
            assert np.array_equal(given[step]["state"][place], simulator.state())
            assert np.array_equal(given[2 + step]["state"][place], simulator.state())
            simulator.step(np.zeros(4))
    simulator.close()


def test_success_after_the_horizon_does_not_count(plans):
    horizon = len(plans[0]) - 1
    assert not run_rollouts(TASK, Replay(plans), [(0, SEEDS[0])], 1, 1, PICTURES, horizon).any()


def test_a_killed_process_is_an_error():
    def act(policies, observations):
        multiprocessing.active_children()[0].kill()
        return np.zeros((len(policies), 4))

    with pytest.raises(UserError, match="a worker process was killed"):
        run_rollouts(TASK, act, [(0, 0), (0, 1)], 2, 2, PICTURES, horizon=50)


def test_actions_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="1 observations were answered by the actions"):
        run_rollouts(TASK, lambda *_: np.full((1, 4), np.nan), [(0, 0)], 1, 1, PICTURES)


def test_an_error_in_a_process_reaches_the_caller():
    with pytest.raises(UserError, match="camera 'x' is unknown"):
        run_rollouts(
            TASK, lambda *_: np.zeros((1, 4)), [(0, 0), (0, 1)], 2, 2, PictureConfig(cameras=("x",))
        )
