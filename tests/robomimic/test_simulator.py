"""Patches of robomimic and robosuite: known versions, the stand-in, separate renderers."""

import gc
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import robomimic
import robomimic.envs.env_base as env_base
import robomimic.utils.env_utils as env_utils
import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils

from mcr import UserError
from mcr.robomimic import compatibility
from mcr.robomimic.demonstrations import make_lift
from mcr.robomimic.simulator import RobosuiteSimulator


def test_this_version_of_robomimic_is_known():
    compatibility.require_version("robomimic", compatibility.ROBOMIMIC_VERSIONS)


def test_unknown_versions_are_refused(monkeypatch):
    monkeypatch.setattr(robomimic, "__version__", "0.6.0")
    with pytest.raises(UserError, match=r"robomimic 0\.6\.0 .* pip install robomimic==0\.3\.0"):
        compatibility.require_version("robomimic", compatibility.ROBOMIMIC_VERSIONS)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "robosuite", None)
    with pytest.raises(UserError, match=r"pip install 'mcr\[robomimic\]'"):
        compatibility.require_version("robosuite", compatibility.ROBOSUITE_VERSIONS)


def test_no_stand_in_is_left_behind():
    assert "mujoco_py" not in sys.modules
    with compatibility.mujoco_py_stand_in():
        import mujoco_py

        assert issubclass(mujoco_py.builder.MujocoException, Exception)
    assert "mujoco_py" not in sys.modules


def test_robomimic_makes_our_simulator_for_robosuite_only():
    assert env_utils.get_env_class(env_type=env_base.EnvType.ROBOSUITE_TYPE) is RobosuiteSimulator
    with pytest.raises(ImportError):  # robomimic's own answer where gym is not installed
        env_utils.get_env_class(env_type=env_base.EnvType.GYM_TYPE)
    assert compatibility._robomimics["get_env_class"].__module__ == "robomimic.utils.env_utils"


def test_registering_twice_does_no_harm():
    ours = env_utils.get_env_class
    compatibility.register(simulator=lambda: RobosuiteSimulator)
    assert env_utils.get_env_class is ours
    assert compatibility._robomimics["get_env_class"] is not ours


def agentview(simulator: RobosuiteSimulator) -> np.ndarray:
    return simulator.get_observation()["agentview_image"].copy()


def test_simulators_of_one_process_do_not_disturb_each_other():
    first, second = make_lift(48), make_lift(32)
    first.reset(), second.reset()
    pictures = agentview(first), agentview(second)
    assert np.array_equal(agentview(first), pictures[0])
    assert np.array_equal(agentview(second), pictures[1])
    first.env.close()
    del first
    gc.collect()
    assert np.array_equal(agentview(second), pictures[1])


def test_light_rendering_has_no_shadows(lift):
    """All pictures are rendered in the same way, those of steps and those observed again."""
    simulator = make_lift(48)
    simulator.reset()
    state = simulator.get_state()["states"]
    light = agentview(simulator)
    stepped, *_ = simulator.step(np.zeros(7))
    assert abs(stepped["agentview_image"].mean() - agentview(simulator).mean()) < 0.1
    arguments = file_utils.get_env_metadata_from_dataset(lift)["env_kwargs"]
    arguments |= {"light_rendering": False, "camera_heights": 48, "camera_widths": 48}
    full = env_utils.create_env(
        env_base.EnvType.ROBOSUITE_TYPE, "Lift", use_image_obs=True, **arguments
    )
    full.reset()
    full.reset_to({"states": state})
    raw = full.env._get_observations(force_update=True)["agentview_image"][::-1].astype(float)
    assert np.abs(light - raw).mean() > 0.3


def test_rollouts_follow_the_global_seed():
    """robomimic seeds NumPy; every policy of a comparison begins from the same states."""

    def states(seed: int) -> list[np.ndarray]:
        np.random.seed(seed)
        simulator = make_lift(32)
        found = []
        for _ in range(2):
            simulator.reset()
            found.append(simulator.get_state()["states"])
        return found

    first = states(3)
    assert np.array_equal(first, states(3))
    assert not np.allclose(first, states(4))
    assert not np.allclose(*first)


def test_a_tiny_rollout_by_robomimic():
    from robomimic.algo import RolloutPolicy
    from robomimic.utils.train_utils import run_rollout

    class Still(RolloutPolicy):
        def __init__(self):
            self.policy = SimpleNamespace()

        def start_episode(self):
            pass

        def __call__(self, ob, goal=None):
            return np.zeros(7)

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"rgb": ["agentview_image"]}})
    result = run_rollout(Still(), make_lift(32), horizon=3)
    assert (result["Horizon"], result["Success_Rate"]) == (3, 0.0)
