"""robomimic's algorithms on real demonstrations, built from configs as its guide shows.

One step of each, then its own saving and loading: the loaded policy acts alike, and the frozen
encoder is the one that was loaded.
"""

import numpy as np
import pytest
import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
import robomimic.utils.train_utils as train_utils
import torch
from robomimic.algo import RolloutPolicy, algo_factory
from robomimic.config import config_factory
from torch.utils.data import DataLoader

import mcr.robomimic  # noqa: F401  registers
from mcr import load_model
from mcr.models.encoder import Encoder

CAMERAS = ["agentview_image", "robot0_eye_in_hand_image"]
VARIANTS = {
    "bc": ("bc", {}),
    "bc gaussian": ("bc", {"gaussian": True}),
    "bc gmm": ("bc", {"gmm": True}),
    "bc vae": ("bc", {"vae": True}),
    "bc rnn": ("bc", {"rnn": True}),
    "bc rnn gmm": ("bc", {"rnn": True, "gmm": True}),
    "bc transformer": ("bc", {"transformer": True}),
    "bcq": ("bcq", {}),
    "cql": ("cql", {}),
    "iql": ("iql", {}),
    "td3_bc": ("td3_bc", {}),
}


def make_config(variant: str, data, encoder_path: str):
    algorithm, enabled = VARIANTS[variant]
    config = config_factory(algorithm)
    with config.values_unlocked():
        config.observation.encoder.rgb.core_kwargs.backbone_class = "MCRConv"
        config.observation.encoder.rgb.core_kwargs.backbone_kwargs.weights = encoder_path
        config.observation.encoder.rgb.core_kwargs.backbone_kwargs.freeze = True
        config.observation.encoder.rgb.core_kwargs.pool_class = None
        config.observation.encoder.rgb.core_kwargs.feature_dimension = 16
        config.observation.modalities.obs.rgb = CAMERAS
        config.observation.modalities.obs.low_dim = ["robot0_eef_pos"]
        config.train.data = str(data)
        config.train.num_data_workers = 0
        config.train.hdf5_cache_mode = "low_dim"
        config.train.hdf5_normalize_obs = False  # TD3-BC's default would normalise pictures
        config.train.batch_size = 2
        config.experiment.validate = False
        config.train.cuda = False
        for name in enabled:
            config.algo[name].enabled = True
        if "rnn" in enabled:
            config.train.seq_length = config.algo.rnn.horizon = 3
        if "transformer" in enabled:
            config.train.frame_stack = config.algo.transformer.context_length = 3
            config.algo.transformer.embed_dim = 32
            config.algo.transformer.num_layers = 1
            config.algo.transformer.num_heads = 2
    config.lock()
    return config


def encoders(policy, targets: bool = False) -> list[Encoder]:
    """Those in the networks that act and learn, or in their slowly following targets."""
    return [
        module
        for name, module in policy.nets.named_modules()
        if isinstance(module, Encoder) and ("target" in name) == targets
    ]


def same_weights(encoder: Encoder, other: Encoder, rtol: float = 0.0) -> bool:
    mine, theirs = encoder.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.allclose(mine[key], theirs[key], rtol=rtol, atol=0) for key in mine
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_algorithm(variant, lift, encoder_path, tmp_path):
    torch.manual_seed(0)
    config = make_config(variant, lift, encoder_path)
    obs_utils.initialize_obs_utils_with_config(config)
    shapes = file_utils.get_shape_metadata_from_dataset(
        dataset_path=config.train.data, all_obs_keys=config.all_obs_keys
    )
    model = algo_factory(
        algo_name=config.algo_name,
        config=config,
        obs_key_shapes=shapes["all_shapes"],
        ac_dim=shapes["ac_dim"],
        device=torch.device("cpu"),
    )
    released = load_model(encoder_path)
    assert len(encoders(model)) >= len(CAMERAS)
    data, _ = train_utils.load_data_for_training(config, obs_keys=shapes["all_obs_keys"])
    model.set_train()
    raw = next(iter(DataLoader(data, batch_size=2)))
    inputs = model.process_batch_for_training(raw)
    inputs = model.postprocess_batch_for_training(inputs, obs_normalization_stats=None)
    before = {name: p.clone() for name, p in model.nets.named_parameters() if p.requires_grad}
    losses = model.log_info(model.train_on_batch(inputs, epoch=1, validate=False))
    assert all(np.isfinite(value) for value in losses.values())
    after = dict(model.nets.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(same_weights(encoder, released) for encoder in encoders(model))
    # t w + (1 - t) w, robomimic's update of targets, is w up to rounding
    targets = encoders(model, targets=True)
    assert all(same_weights(target, released, rtol=1e-5) for target in targets)

    path = str(tmp_path / "policy.pth")
    environment = file_utils.get_env_metadata_from_dataset(config.train.data)
    train_utils.save_model(model, config, environment, shapes, path)
    loaded, _ = file_utils.policy_from_checkpoint(ckpt_path=path, device=torch.device("cpu"))
    assert all(same_weights(encoder, released) for encoder in encoders(loaded.policy))
    observation = first_observation(lift, config)
    actions = []
    for policy in (RolloutPolicy(model), loaded):
        policy.start_episode()
        torch.manual_seed(0)
        np.random.seed(0)
        actions.append(policy(ob=dict(observation)))
    assert actions[0].shape == (7,)
    np.testing.assert_array_equal(*actions)


def first_observation(lift, config) -> dict[str, np.ndarray]:
    """As an environment would hand it to a policy, for transformers the last frames of it."""
    import h5py

    with h5py.File(lift, "r") as file:
        observation = {key: file["data/demo_0/obs"][key][0] for key in config.all_obs_keys}
    observation = obs_utils.process_obs_dict(observation)
    frames = config.train.frame_stack
    return (
        observation if frames == 1 else {k: np.stack([v] * frames) for k, v in observation.items()}
    )


def test_fine_tuned_encoder_is_saved_and_loaded(lift, encoder_path, tmp_path):
    config = make_config("bc", lift, encoder_path)
    with config.unlocked():
        kwargs = config.observation.encoder.rgb.core_kwargs.backbone_kwargs
        kwargs.freeze, kwargs.trainable = False, ["layer4"]
    obs_utils.initialize_obs_utils_with_config(config)
    shapes = file_utils.get_shape_metadata_from_dataset(
        dataset_path=config.train.data, all_obs_keys=config.all_obs_keys
    )
    model = algo_factory("bc", config, shapes["all_shapes"], shapes["ac_dim"], torch.device("cpu"))
    data, _ = train_utils.load_data_for_training(config, obs_keys=shapes["all_obs_keys"])
    model.set_train()
    inputs = model.process_batch_for_training(next(iter(DataLoader(data, batch_size=2))))
    inputs = model.postprocess_batch_for_training(inputs, obs_normalization_stats=None)
    model.train_on_batch(inputs, epoch=1)
    released = load_model(encoder_path)
    (tuned, _) = encoders(model)[:2]
    assert not torch.equal(tuned.layer4[1].conv2.weight, released.layer4[1].conv2.weight)
    assert torch.equal(tuned.layer4[1].bn2.running_var, released.layer4[1].bn2.running_var)
    assert torch.equal(tuned.layer3[1].conv2.weight, released.layer3[1].conv2.weight)
    path = str(tmp_path / "policy.pth")
    environment = file_utils.get_env_metadata_from_dataset(config.train.data)
    train_utils.save_model(model, config, environment, shapes, path)
    loaded, _ = file_utils.policy_from_checkpoint(ckpt_path=path, device=torch.device("cpu"))
    assert same_weights(encoders(loaded.policy)[0], tuned)
