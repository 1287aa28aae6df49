"""LeRobot's policies with our encoders inside: they learn, freeze, save, load and refuse."""

import shutil

import pytest
import safetensors.torch
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

import mcr.lerobot  # noqa: F401  registers
from mcr.errors import UserError
from mcr.models.encoder import Encoder
from mcr.models.fingerprint import weights_fingerprint
from mcr.models.loading import load_model
from mcr.models.untrained import write_untrained

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
SMALL = {
    "mcr_act": {
        "chunk_size": 4,
        "n_action_steps": 2,
        "dim_model": 32,
        "n_heads": 2,
        "dim_feedforward": 64,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
    },
    "mcr_diffusion": {
        "horizon": 4,
        "n_action_steps": 2,
        "down_dims": (16, 32),
        "diffusion_step_embed_dim": 16,
        "n_groups": 4,
        "num_train_timesteps": 5,
    },
    "mcr_vqbet": {
        "n_obs_steps": 2,
        "action_chunk_size": 2,
        "n_action_pred_token": 2,
        "n_vqvae_training_steps": 2,
        "gpt_n_layer": 1,
        "gpt_n_head": 2,
        "gpt_hidden_dim": 32,
        "gpt_input_dim": 32,
        "gpt_output_dim": 32,
    },
}
TYPES = list(SMALL)


def make_config(kind: str, encoder: str, **changes) -> PreTrainedConfig:
    """A small config; VQ-BeT takes one camera only."""
    shapes = {FRONT: (3, 48, 80), WRIST: (3, 32, 32)}
    cameras = [FRONT] if kind == "mcr_vqbet" else [FRONT, WRIST]
    inputs = {key: PolicyFeature(FeatureType.VISUAL, shapes[key]) for key in cameras}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (5,))
    options = {
        "device": "cpu",
        "vision_backbone": encoder,
        "input_features": inputs,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
    }
    return make_policy_config(kind, **SMALL[kind] | options | changes)


def make_policy(kind: str, encoder: str, statistics=None, **changes):
    torch.manual_seed(0)
    config = make_config(kind, encoder, **changes)
    return get_policy_class(kind)(config, dataset_stats=statistics)


def make_batch(config, size: int = 4) -> dict:
    """As LeRobot's data set gives it."""
    torch.manual_seed(1)
    steps = [config.n_obs_steps] if config.observation_delta_indices is not None else []
    actions = len(config.action_delta_indices)
    batch = {
        key: torch.rand(size, *steps, *feature.shape)
        for key, feature in config.input_features.items()
    }
    batch["action"] = torch.rand(size, actions, 3)
    batch["action_is_pad"] = torch.zeros(size, actions, dtype=torch.bool)
    return batch


def observation(config) -> dict:
    torch.manual_seed(2)
    return {key: torch.rand(1, *feature.shape) for key, feature in config.input_features.items()}


def encoder_of(policy) -> Encoder:
    return next(module for module in policy.modules() if isinstance(module, Encoder))


def learn(policy, steps: int = 5) -> list[float]:
    """Train as LeRobot's trainer does; the losses."""
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    batch, losses = make_batch(policy.config), []
    for _ in range(steps):
        policy.train()
        loss, _ = policy.forward(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def vit_path(tmp_path_factory) -> str:
    return str(write_untrained(tmp_path_factory.mktemp("vit") / "vit.pt", "vit_ti_16", 64))


@pytest.fixture
def any_encoder(request, encoder_path, vit_path) -> str:
    return {"resnet": encoder_path, "vit": vit_path}.get(request.param, request.param)


@pytest.mark.parametrize("any_encoder", ["resnet", "vit", "efficientnet_lite0"], indirect=True)
@pytest.mark.parametrize("kind", TYPES)
def test_frozen_encoder_keeps_its_hash_while_the_policy_learns(kind, any_encoder):
    policy = make_policy(kind, any_encoder)
    expected = weights_fingerprint(load_model(any_encoder))
    assert weights_fingerprint(encoder_of(policy)) == expected
    inside = {id(p) for p in encoder_of(policy).parameters()}
    before = {name: p.clone() for name, p in policy.named_parameters() if id(p) not in inside}
    losses = learn(policy)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert weights_fingerprint(encoder_of(policy)) == expected
    moved = [name for name, p in policy.named_parameters() if name in before]
    assert any(not torch.equal(before[name], policy.get_parameter(name)) for name in moved)


@pytest.mark.parametrize("kind", TYPES)
def test_optimiser_holds_no_frozen_parameter_and_every_other_one_once(kind, encoder_path):
    policy = make_policy(kind, encoder_path)
    theirs = [id(p) for group in policy.get_optim_params() for p in group["params"]]
    frozen = {id(p) for p in encoder_of(policy).parameters()}
    assert len(theirs) == len(set(theirs))
    assert not frozen & set(theirs)


@pytest.mark.parametrize("kind", TYPES)
def test_layers_learn_at_their_own_rate(kind, encoder_path):
    policy = make_policy(
        kind,
        encoder_path,
        freeze_backbone=False,
        trainable_layers=["layer4"],
        optimizer_lr_backbone=3e-3,
        **({"n_vqvae_training_steps": 1} if kind == "mcr_vqbet" else {}),
    )
    encoder, frozen = encoder_of(policy), load_model(encoder_path)
    (own,) = [group for group in policy.get_optim_params() if group.get("lr") == 3e-3]
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    assert all(names[id(parameter)].startswith("layer4.") for parameter in own["params"])
    learn(policy, steps=3)
    changed = {
        name
        for name, tensor in encoder.state_dict().items()
        if not torch.equal(tensor, frozen.state_dict()[name])
    }
    assert changed and all(name.startswith("layer4.") for name in changed)
    assert not any("running" in name or "tracked" in name for name in changed)


@pytest.mark.parametrize("kind", TYPES)
def test_saved_policy_is_loaded_without_the_encoders_file(kind, encoder_path, tmp_path):
    moved = shutil.copytree(encoder_path, tmp_path / "encoder")
    policy = make_policy(kind, str(moved), freeze_backbone=False).eval()
    learn(policy, steps=3)
    policy.save_pretrained(tmp_path / "policy")
    shutil.rmtree(moved)
    loaded = get_policy_class(kind).from_pretrained(tmp_path / "policy")
    assert loaded.config.type == kind
    expected = policy.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    actions = []
    for each in (policy, loaded):
        each.eval()
        each.reset()
        torch.manual_seed(3)
        actions.append(each.select_action(observation(each.config)))
    assert torch.equal(*actions)


def test_a_file_that_lacks_a_tensor_is_refused(encoder_path, tmp_path):
    policy = make_policy("mcr_act", encoder_path)
    policy.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    removed = next(name for name in tensors if "layer4.1.conv2.weight" in name)
    del tensors[removed]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=removed):
        get_policy_class("mcr_act").from_pretrained(tmp_path)


# --------------------------------------------------------------------------- pictures


def statistics_of(config) -> dict:
    return {
        key: {"mean": torch.full((3, 1, 1), 0.4).numpy(), "std": torch.full((3, 1, 1), 0.2).numpy()}
        for key in config.image_features
    }


@pytest.mark.parametrize("kind", TYPES)
def test_pictures_that_lerobot_normalised_give_the_features_of_raw_ones(kind, encoder_path):
    mapping = {
        "VISUAL": NormalizationMode.MEAN_STD,
        "STATE": NormalizationMode.IDENTITY,
        "ACTION": NormalizationMode.IDENTITY,
    }
    config = make_config(kind, encoder_path, normalization_mapping=mapping)
    statistics = statistics_of(config)
    policy = make_policy(kind, encoder_path, statistics, normalization_mapping=mapping)
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=statistics)
    raw = make_batch(config)
    normalised = preprocessor(dict(raw))
    assert normalised[FRONT].min() < -0.5
    seen = []
    encoder = encoder_of(policy)
    encode = encoder.encode
    encoder.encode = lambda pixels, output: seen.append(pixels) or encode(pixels, output)
    policy.train()
    if kind == "mcr_vqbet":
        policy.vqbet.action_head.vqvae_model.discretized.fill_(True)
    policy.forward(normalised)
    expected = [encoder.preprocess(raw[key]).flatten(0, -4) for key in config.image_features]
    both = torch.cat(seen).flatten(1).sort(dim=0)[0], torch.cat(expected).flatten(1).sort(dim=0)[0]
    assert torch.allclose(*both, atol=1e-5)


def test_normalised_pictures_are_refused_if_the_config_says_raw(encoder_path):
    policy = make_policy("mcr_act", encoder_path)
    batch = make_batch(policy.config)
    batch[FRONT] = (batch[FRONT] - 0.4) / 0.2
    with pytest.raises(UserError, match="looks ImageNet-normalised already"):
        policy.forward(batch)


def test_new_statistics_replace_those_of_the_file(encoder_path, tmp_path):
    mapping = {"VISUAL": NormalizationMode.MEAN_STD}
    config = make_config("mcr_act", encoder_path)
    policy = make_policy(
        "mcr_act", encoder_path, statistics_of(config), normalization_mapping=mapping
    )
    policy.save_pretrained(tmp_path)
    new = {key: {"mean": [0.1] * 3, "std": [0.5] * 3} for key in config.image_features}
    load = get_policy_class("mcr_act").from_pretrained
    assert load(tmp_path).raw_pictures.offset.flatten().tolist() == pytest.approx([0.4] * 6)
    given = load(tmp_path, config=policy.config, dataset_stats=new).raw_pictures.offset
    assert given.flatten().tolist() == pytest.approx([0.1] * 6)


@pytest.mark.parametrize("kind", ["mcr_act", "mcr_diffusion"])
def test_features_in_the_place_of_pictures_give_the_same_loss(kind, encoder_path):
    policy = make_policy(kind, encoder_path).train()
    batch = make_batch(policy.config)
    encoder = encoder_of(policy)
    cached = batch | {
        key: encoder.features(batch[key], "spatial") for key in policy.config.image_features
    }
    losses = []
    for each in (batch, cached):
        torch.manual_seed(4)
        losses.append(policy.forward(each)[0])
    assert torch.allclose(*losses, rtol=1e-5)
    with pytest.raises(UserError, match="neither pictures"):
        policy.forward(cached | {key: cached[key][..., :1] for key in [FRONT, WRIST]})


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mcr_act", {"vision_backbone": ""}, "names no encoder"),
        ("mcr_act", {"pretrained_backbone_weights": "X"}, "are those of vision_backbone"),
        ("mcr_act", {"trainable_layers": ["layer4"]}, "contradict each other"),
        ("mcr_act", {"replace_final_stride_with_dilation": 1}, "changes a ResNet"),
        ("mcr_diffusion", {"use_group_norm": True}, "untrained ones"),
        ("mcr_vqbet", {"use_group_norm": True}, "untrained ones"),
        ("mcr_act", {"cached_features": "x", "freeze_backbone": False}, "freeze_backbone=False"),
        (
            "mcr_act",
            {
                "cached_features": "x",
                "normalization_mapping": {"VISUAL": NormalizationMode.MIN_MAX},
            },
            "VISUAL=MIN_MAX",
        ),
        ("mcr_diffusion", {"cached_features": "x", "crop_shape": (8, 8)}, "crop_shape"),
    ],
)
def test_option_is_refused(kind, changes, message, encoder_path):
    cls = PreTrainedConfig.get_choice_class(kind)
    with pytest.raises(UserError, match=message):
        cls(**{"device": "cpu", "vision_backbone": encoder_path} | changes)


def test_crops_of_cameras_that_differ_are_refused(encoder_path):
    with pytest.raises(UserError, match="differ in size"):
        make_policy("mcr_diffusion", encoder_path, crop_shape=(16, 16))


def test_unknown_layer_and_missing_file_are_refused(encoder_path):
    with pytest.raises(UserError, match="did you mean 'layer4'"):
        make_policy("mcr_act", encoder_path, freeze_backbone=False, trainable_layers=["layer44"])
    with pytest.raises(UserError, match="nowhere"):
        make_policy("mcr_act", "nowhere.pth")
