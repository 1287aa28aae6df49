"""All tasks of both suites: observations, scenes from seeds, experts, varied looks, masks."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from mcr.errors import UserError
from mcr.runs.processes import process_pool
from mcr.simulation.simulator import PictureConfig
from mcr.simulation.tasks import SUITES, TASKS, make_simulator

SIZE = 48
PROPRIOCEPTION = {"metaworld": 4, "robosuite": 10}
NUM_BODIES = {"lift": 1, "stack": 2, "can": 1, "square": 2}
ONE_OF_EACH = ("metaworld/assembly", "robosuite/lift")


@pytest.fixture
def simulator():
    """simulator(task, ...) makes a simulator that is closed after the test."""
    made = []

    def make(task: str, size: int = SIZE, horizon: int = 0, **pictures):
        made.append(make_simulator(task, PictureConfig(size, **pictures), horizon))
        return made[-1]

    yield make
    for each in made:
        each.close()


def after(seed: int, steps: int, task: str, others: tuple[int, ...] = ()) -> bytes:
    """The observation `steps` of the expert after a reset to `seed`, with other scenes before."""
    simulator = make_simulator(task, PictureConfig(SIZE))
    for scene in (*others, seed):
        observation = simulator.reset(scene)
        for _ in range(steps):
            observation, _ = simulator.step(simulator.expert())
    simulator.close()
    return b"".join(value.tobytes() for value in observation.values())


@pytest.mark.parametrize("task", TASKS)
def test_expert_succeeds_in_spite_of_noise(task, simulator):
    world = simulator(task)
    rng = np.random.default_rng(0)
    done = []
    for seed in range(3):
        observation = world.reset(seed)
        check(observation, world)
        success = False
        for _ in range(world.horizon):
            action = world.expert()
            assert action.shape == (world.action_dim,) and action.dtype == np.float32
            assert np.abs(action).max() <= 1
            disturbance = np.append(rng.normal(0, 0.05, world.action_dim - 1), 0)
            observation, success = world.step(action + disturbance)
            if success:
                break
        check(observation, world)
        done.append(success)
    assert sum(done) >= 2


def check(observation, world):
    suite = world.task.partition("/")[0]
    assert set(observation) == {"proprioception", *(f"{c}_image" for c in world.cameras)}
    assert observation["proprioception"].shape == (PROPRIOCEPTION[suite],)
    assert observation["proprioception"].dtype == np.float32
    for camera in world.cameras:
        picture = observation[f"{camera}_image"]
        assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
        assert picture.std() > 10


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_is_the_same_scene(task):
    alone = after(5, 4, task)
    assert after(5, 4, task, others=(1, 2)) == alone
    assert after(6, 4, task) != alone


@pytest.mark.parametrize("task", TASKS)
def test_varied_looks_depend_on_the_seed_and_change_only_pictures(task, simulator):
    fixed, varied = simulator(task), simulator(task, looks="varied")
    seen = [varied.reset(seed) for seed in (5, 6, 5)]
    for camera in fixed.cameras:
        first, other, again = (observation[f"{camera}_image"] for observation in seen)
        assert np.array_equal(first, again)
        assert np.abs(first.astype(int) - other).mean() > 5
        assert first.std() > 10
    assert np.array_equal(fixed.reset(5)["proprioception"], seen[0]["proprioception"])
    assert np.array_equal(fixed.expert(), varied.expert())
    for _ in range(3):
        action = fixed.expert()
        before, after = fixed.step(action)[0], varied.step(action)[0]
        assert np.array_equal(before["proprioception"], after["proprioception"])


@pytest.mark.parametrize("task", TASKS)
def test_recoloured_looks_leave_the_cameras_where_they_are(task, simulator):
    """What belongs to the task has the same pixels in both, and the rest has other colours."""
    fixed, recoloured = simulator(task), simulator(task, looks="recoloured")
    first, second = fixed.reset(5), recoloured.reset(5)
    for camera, mask in fixed.masks().items():
        assert np.array_equal(mask, recoloured.masks()[camera])
        pictures = (seen[f"{camera}_image"].astype(int) for seen in (first, second))
        assert np.abs(np.subtract(*pictures))[~mask].mean() > 5


@pytest.mark.parametrize("task", TASKS)
def test_without_pictures_all_else_is_the_same(task, simulator):
    """The true state holds the proprioception, and an observation does not hold the state."""
    seeing, blind = simulator(task), simulator(task, size=0)
    assert blind.cameras == () and blind.masks() == {}
    seen, felt = seeing.reset(3), blind.reset(3)
    for _ in range(3):
        assert set(felt) == {"proprioception"}
        assert np.array_equal(seen["proprioception"], felt["proprioception"])
        state = blind.state()
        assert state.dtype == np.float32 and np.array_equal(state, seeing.state())
        assert np.array_equal(state[: len(felt["proprioception"])], felt["proprioception"])
        action = blind.expert()
        seen, felt = seeing.step(action)[0], blind.step(action)[0]
    suite, _, name = task.partition("/")
    expected = 39 if suite == "metaworld" else 10 + 18 * NUM_BODIES[name]
    assert state.shape == (expected,)
    blind.reset(4)
    assert not np.array_equal(blind.state()[10:], state[10:])  # the objects lie elsewhere


def test_the_state_knows_where_the_cube_is(simulator):
    world = simulator("robosuite/lift", size=0)
    world.reset(0)
    physics = world._world.sim.data
    state = world.state()
    cube = physics.get_body_xpos("cube_main"), physics.get_body_xmat("cube_main").reshape(3, 3)
    hand = state[:3].astype(float), np.stack([state[3:6], state[6:9]], axis=1).astype(float)
    frame = np.c_[hand[1], np.cross(*hand[1].T)]
    of_cube = state[10:]
    np.testing.assert_allclose(of_cube[:3], cube[0], atol=1e-6)
    np.testing.assert_allclose(of_cube[3:9].reshape(2, 3).T, cube[1][:, :2], atol=1e-6)
    np.testing.assert_allclose(hand[0] + frame @ of_cube[9:12], cube[0], atol=1e-5)
    np.testing.assert_allclose(frame @ of_cube[12:].reshape(2, 3).T, cube[1][:, :2], atol=1e-5)


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_varied_looks_leave_robot_and_objects_their_colours(task, simulator):
    world = simulator(task, looks="varied")
    model = world._renderer._model
    before = model.geom_rgba.copy()
    world.reset(0)
    recoloured = (model.geom_rgba != before).any(axis=1)
    assert recoloured.any()
    assert not recoloured[world._of_interest].any()
    assert (model.body_weldid[model.geom_bodyid[recoloured]] == 0).all()


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_same_seed_is_the_same_scene_in_another_process(task):
    with process_pool(1) as pool:
        elsewhere = pool.submit(after, 5, 4, task, (3,)).result()
    assert elsewhere == after(5, 4, task)


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_a_reset_does_not_change_numpys_global_generator(task, simulator):
    world = simulator(task)
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    world.reset(0)
    assert np.random.random() == expected


@pytest.mark.parametrize("task", TASKS)
def test_masks_are_the_pixels_that_change_when_objects_are_hidden(task, simulator):
    """There are no shadows and reflections, so hiding an object changes only its own pixels."""
    world = simulator(task, 96)
    world.reset(0)
    for _ in range(30):
        seen, _ = world.step(world.expert())
    masks = world.masks()
    world._renderer._model.geom_group[world._of_interest] = 5
    hidden = world._observe()
    for camera in world.cameras:
        changed = (seen[f"{camera}_image"] != hidden[f"{camera}_image"]).any(axis=2)
        assert masks[camera].dtype == bool and 0.005 < masks[camera].mean() < 0.7
        assert not (changed & ~masks[camera]).any()
        assert (changed & masks[camera]).sum() > 0.9 * masks[camera].sum()


@pytest.mark.parametrize("task", ONE_OF_EACH)
def test_rendering_masks_does_not_change_pictures(task, simulator):
    world = simulator(task)
    before = world.reset(0)
    world.masks()
    after_masks = world._observe()
    assert all(np.array_equal(before[key], after_masks[key]) for key in before)


def test_simulators_in_one_process_are_independent(simulator):
    alone = {task: after(4, 0, task) for task in ONE_OF_EACH}
    worlds = [simulator(task) for task in ONE_OF_EACH]
    passing = make_simulator("metaworld/hammer", PictureConfig(64))
    for world in worlds:
        world.reset(0)
    passing.close()
    for world in reversed(worlds):
        observation = world.reset(4)
        assert b"".join(value.tobytes() for value in observation.values()) == alone[world.task]


def test_actions_are_clipped(simulator):
    world = simulator("metaworld/drawer-open")
    observations = []
    for size in (1.0, 50.0):
        world.reset(0)
        observations.append(world.step(np.array([size, 0, -size, size]))[0]["proprioception"])
    assert np.array_equal(*observations)


def test_cameras_and_horizon(simulator):
    world = simulator("metaworld/hammer", horizon=7, cameras=("topview", "gripperPOV"))
    assert set(world.reset(0)) == {"topview_image", "gripperPOV_image", "proprioception"}
    assert set(world.masks()) == {"topview", "gripperPOV"} and world.horizon == 7


@pytest.mark.parametrize(
    ("task", "camera", "complaint"),
    [("metaworld/hammer", "corner22", "'corner2'"), ("robosuite/lift", "agent", "'agentview'")],
)
def test_unknown_camera(task, camera, complaint):
    with pytest.raises(UserError, match=f"camera '{camera}' is unknown; did you mean {complaint}"):
        make_simulator(task, PictureConfig(SIZE, (camera,)))


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(
    ("before", "variables", "reason"),
    [
        ("", {"__EGL_VENDOR_LIBRARY_FILENAMES": os.devnull, "MUJOCO_GL": "egl"}, "EGL device"),
        (
            "import mujoco",
            {"MUJOCO_GL": "", "DISPLAY": ""},
            "OpenGL",
        ),  # imported before MUJOCO_GL is set, it wants a display
    ],
)
def test_without_opengl(suite, before, variables, reason):
    code = (
        f"{before}\n"
        "from mcr.errors import plain_errors\n"
        "from mcr.simulation.tasks import make_simulator\n"
        f"with plain_errors(): make_simulator('{suite}/{SUITES[suite][0]}')"
    )
    environment = os.environ | variables | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert re.search(f"cannot render off-screen .*{reason}", result.stderr)
    assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in result.stderr
    assert "Traceback" not in result.stderr
