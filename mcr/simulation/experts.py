"""Scripted experts for robosuite's tasks: generators that yield one action per control step.

An expert reads the true state of the world at every step, so it corrects for noise on its actions.
The simulator decides whether the task is done. An expert that has finished stays where it is.
Called by `robosuite` and `mcr.robomimic.demonstrations`. The sample data has an expert of its own
(scripts/sample_droid/expert.py), which commands poses and imitates a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

MAX_STEP_M, MAX_STEP_RAD = 0.05, 0.5  # what an action of 1 means to the Panda's controller
_GAIN = 2.5  # the controller covers only part of a step, and would stop millimetres short
_CLOSING_STEPS, _OPENING_STEPS = 8, 5
_SLOW_M = 0.015  # the farthest a descending hand aims below itself; a faster one would swing
_HALF, _QUARTER = np.pi, np.pi / 2  # the symmetry of a handle and of a cube, in radians

Pose = tuple[np.ndarray, np.ndarray]  # position [3] in metres, rotation matrix [3, 3]; world frame
Goal = Callable[[], tuple[np.ndarray, float]]  # position to reach; angle to turn about z
Plan = Iterator[np.ndarray]  # actions, float64 [7] in [-1, 1]


class Hand:
    """The gripper, and the actions that move it. z points down, the fingers close along x."""

    def __init__(self, world: Any):
        self._world = world
        self.closed = False

    def pose(self) -> Pose:
        """The pose of the point between the fingertips."""
        data, site = self._world.sim.data, self._world.robots[0].eef_site_id["right"]
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy()

    def reach(self, goal: Goal, tolerance_m: float, max_steps: int = 60) -> Plan:
        """Move until the hand is within the tolerance of the goal, and within 0.05 rad."""
        for _ in range(max_steps):
            target, turn = goal()
            position, _ = self.pose()
            if np.linalg.norm(target - position) < tolerance_m and abs(turn) < 0.05:
                return
            yield self._action(target, turn)

    def hold(self, steps: int) -> Plan:
        """Stay in place while the fingers open or close."""
        position, _ = self.pose()
        for _ in range(steps):
            yield self._action(position, 0.0)

    def rise(self, height_m: float) -> Plan:
        top = self.pose()[0] + [0, 0, height_m]
        yield from self.reach(lambda: (top, 0.0), 0.02)

    def rest(self) -> Plan:
        """Stay in place for ever."""
        position, _ = self.pose()
        while True:
            yield self._action(position, 0.0)

    def _action(self, target: np.ndarray, turn: float) -> np.ndarray:
        position, rotation = self.pose()
        tilt = np.cross(rotation[:, 2], [0, 0, -1])
        shift = _GAIN * (target - position) / MAX_STEP_M
        spin = _GAIN * (tilt + [0, 0, turn]) / MAX_STEP_RAD
        move = np.concatenate([shift, spin]).clip(-1, 1)
        return np.append(move, 1.0 if self.closed else -1.0)


def lift(hand: Hand, world: Any) -> Plan:
    cube = _body(world, world.cube_body_id)
    yield from _grasp(hand, _across_cube(hand, cube))
    yield from hand.rise(0.12)
    yield from hand.rest()


def stack(hand: Hand, world: Any) -> Plan:
    cube, goal = _body(world, world.cubeA_body_id), _body(world, world.cubeB_body_id)

    def on_goal() -> tuple[np.ndarray, float]:
        return _carry(hand, cube, goal()[0] + [0, 0, 0.047]), 0.0

    yield from _grasp(hand, _across_cube(hand, cube))
    yield from hand.rise(0.12)
    yield from _place(hand, on_goal, 0.06, spare_m=0.008)


def can(hand: Hand, world: Any) -> Plan:
    thing = _body(world, world.obj_body_id["Can"])
    centre = world.target_bin_placements[world.object_to_id["can"]]
    place = centre + [-0.05, -0.03, 0.07]  # the arm barely reaches the bin's centre
    yield from _grasp(hand, lambda: (thing()[0] + [0, 0, 0.01], 0.0))
    yield from hand.rise(0.25)
    yield from _place(hand, lambda: (_carry(hand, thing, place), 0.0), 0.12, spare_m=0.03)


def square(hand: Hand, world: Any) -> Plan:
    nut, peg = _body(world, world.obj_body_id["SquareNut"]), _body(world, world.peg1_body_id)
    floor = world.model.mujoco_arena.table_offset[2]

    def handle() -> tuple[np.ndarray, float]:
        position, rotation = nut()
        turn = _turn(hand.pose()[1][:, 0], rotation[:, 1], _HALF)
        return position + rotation @ [0.06, 0, 0], turn

    def over_peg() -> tuple[np.ndarray, float]:
        """Turn the handle towards the robot: in other directions the arm cannot reach the peg."""
        turn = _turn(nut()[1][:, 0], np.array([-1, 0]), 2 * np.pi)
        if away and turn < -_QUARTER / 2:
            turn += 2 * np.pi  # the wrist can make half a turn in one direction only
        return _carry(hand, nut, np.array([*peg()[0][:2], floor + 0.05])), turn

    away = nut()[1][0, 0] > 0  # the handle points away from the robot
    yield from _grasp(hand, handle)
    yield from hand.rise(0.2)
    yield from _place(hand, over_peg, 0.14, spare_m=0.005)


EXPERTS: dict[str, Callable[[Hand, Any], Plan]] = {
    "lift": lift,
    "stack": stack,
    "can": can,
    "square": square,
}


def _grasp(hand: Hand, goal: Goal) -> Plan:
    yield from hand.reach(_above(goal, 0.10), 0.015)
    yield from hand.reach(goal, 0.008, max_steps=30)
    hand.closed = True
    yield from hand.hold(_CLOSING_STEPS)


def _place(hand: Hand, goal: Goal, height_m: float, spare_m: float) -> Plan:
    """Move above the goal, descend while within `spare_m` of its axis, let go, rise."""
    yield from hand.reach(_above(goal, height_m), 0.01, max_steps=90)
    yield from hand.reach(_funnel(hand, goal, height_m, spare_m), spare_m, max_steps=150)
    hand.closed = False
    yield from hand.hold(_OPENING_STEPS)
    yield from hand.rise(0.10)
    yield from hand.rest()


def _funnel(hand: Hand, goal: Goal, height_m: float, spare_m: float) -> Goal:
    """Descend slowly while the hand is above the goal, and rise while it is beside the goal.

    In between, the hand keeps its height and moves sideways towards the goal.
    """

    def descent() -> tuple[np.ndarray, float]:
        position, turn = goal()
        offset = position - hand.pose()[0]
        beside = np.linalg.norm(offset[:2])
        if beside > spare_m:
            offset[2] = offset[2] + height_m if beside > spare_m + 0.003 else 0.0
        offset[2] = np.clip(offset[2], -_SLOW_M, _SLOW_M)
        return hand.pose()[0] + offset, turn

    return descent


def _above(goal: Goal, height_m: float) -> Goal:
    def higher() -> tuple[np.ndarray, float]:
        position, turn = goal()
        return position + [0, 0, height_m], turn

    return higher


def _across_cube(hand: Hand, cube: Callable[[], Pose]) -> Goal:
    def goal() -> tuple[np.ndarray, float]:
        position, rotation = cube()
        return position, _turn(hand.pose()[1][:, 0], rotation[:, 0], _QUARTER)

    return goal


def _carry(hand: Hand, thing: Callable[[], Pose], place: np.ndarray) -> np.ndarray:
    """The position of the hand at which the thing that it holds is at `place`."""
    return place + hand.pose()[0] - thing()[0]


def _body(world: Any, number: int) -> Callable[[], Pose]:
    data = world.sim.data
    return lambda: (data.body_xpos[number].copy(), data.body_xmat[number].reshape(3, 3).copy())


def _turn(now: np.ndarray, wanted: np.ndarray, period: float) -> float:
    """The smallest angle about z from one direction to another, modulo `period`, in radians."""
    angle = np.arctan2(wanted[1], wanted[0]) - np.arctan2(now[1], now[0])
    return float((angle + period / 2) % period - period / 2)
