"""Every network of robomimic's guide to models, with our encoder inside: forward, step, shapes.

https://robomimic.github.io/docs/modules/models.html. For each: the output has the shape that
`output_shape` says, a gradient step changes the network and lowers a loss on its batch, and the
frozen encoder stays as it was.
"""

import random
from collections import OrderedDict

import numpy as np
import pytest
import robomimic.utils.file_utils as file_utils
import robomimic.utils.obs_utils as obs_utils
import torch
from robomimic.models.base_nets import MLP
from robomimic.models.obs_core import (
    ColorRandomizer,
    CropRandomizer,
    GaussianNoiseRandomizer,
    VisualCore,
)
from robomimic.models.obs_nets import (
    MIMO_MLP,
    RNN_MIMO_MLP,
    ObservationDecoder,
    ObservationEncoder,
    ObservationGroupEncoder,
    obs_encoder_factory,
)
from robomimic.models.policy_nets import (
    ActorNetwork,
    GaussianActorNetwork,
    GMMActorNetwork,
    PerturbationActorNetwork,
    RNNActorNetwork,
    RNNGMMActorNetwork,
    VAEActor,
)
from robomimic.models.vae_nets import VAE
from robomimic.models.value_nets import (
    ActionValueNetwork,
    DistributionalActionValueNetwork,
    ValueNetwork,
)

import mcr.robomimic  # noqa: F401  registers
from mcr import UserError, load_model
from mcr.models.encoder import Encoder

B, T, A, SIDE = 2, 3, 7, 48  # batch, steps of a sequence, actions, pixels
SHAPES = OrderedDict(camera=[3, SIDE, SIDE], proprio=[5])
GOAL = OrderedDict(camera=[3, SIDE, SIDE])
CPU = torch.device("cpu")
# robomimic's recurrent networks check the shapes that they are asked about as if they were arrays
# of T entries, of which the first is T.
STEPS = {key: torch.full((T,), T) for key in SHAPES}


@pytest.fixture(autouse=True)
def names_of_observations():
    torch.manual_seed(0)
    obs_utils.initialize_obs_modality_mapping_from_dict(
        {"rgb": ["camera", "camera2"], "low_dim": ["proprio", "action"]}
    )


@pytest.fixture
def core(encoder_path) -> dict:
    """VisualCore's keyword arguments: pooled features, then a linear layer."""
    return {
        "backbone_class": "MCRConv",
        "backbone_kwargs": {"weights": encoder_path, "freeze": True},
        "pool_class": None,
        "feature_dimension": 16,
    }


@pytest.fixture
def encoder_kwargs(core) -> dict:
    none = {"core_class": None, "core_kwargs": {}}
    randomizer = {"obs_randomizer_class": None, "obs_randomizer_kwargs": {}}
    visual = {"core_class": "VisualCore", "core_kwargs": core}
    return {"rgb": visual | randomizer, "low_dim": none | randomizer}


def batch(shapes: dict, *leading: int) -> dict:
    return {key: torch.rand(*leading, *shape) for key, shape in shapes.items()}


def weights_hash(network: torch.nn.Module) -> int:
    """Of the frozen encoders in it, of which there must be one at least."""
    encoders = [module for module in network.modules() if isinstance(module, Encoder)]
    assert encoders
    return hash(
        tuple(t.numpy().tobytes() for encoder in encoders for t in encoder.state_dict().values())
    )


def check_step(network: torch.nn.Module, loss) -> None:
    """Steps on one batch in training mode lower `loss()` and leave the encoder alone."""
    network.train()
    before = weights_hash(network)
    learning = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-2)
    seed_noise()
    first = loss()
    first.backward()
    assert all(p.grad.isfinite().all() for p in learning if p.grad is not None)
    torch.nn.utils.clip_grad_norm_(learning, 1.0)
    optimizer.step()
    seed_noise()
    assert loss() < first
    assert weights_hash(network) == before


def seed_noise() -> None:
    torch.manual_seed(1)
    random.seed(1)  # ColorRandomizer's


def check_shape(output, shape, leading=(B,)) -> None:
    if isinstance(output, dict):
        assert output.keys() == shape.keys()
        for key in output:
            check_shape(output[key], shape[key], leading)
    else:
        assert list(output.shape) == [*leading, *shape]


# ------------------------------------------------------------------------ VisualCore


@pytest.mark.parametrize("feature_dimension", [None, 64])
@pytest.mark.parametrize(
    ("output", "pool", "width"),
    [
        ("pooled", {"pool_class": None}, 512),
        ("spatial", {"pool_class": "SpatialSoftmax", "pool_kwargs": {"num_kp": 8}}, 16),
        ("spatial", {"pool_class": "SpatialMeanPool"}, 512),
        ("spatial", {"pool_class": None}, 512 * 2 * 2),
    ],
)
def test_visual_core(core, output, pool, width, feature_dimension):
    core["backbone_kwargs"]["output"] = output
    core |= pool | {"feature_dimension": feature_dimension}
    network = VisualCore(input_shape=SHAPES["camera"], **core)
    pictures = torch.rand(B, *SHAPES["camera"])
    expected = [feature_dimension or width]
    assert network.output_shape(SHAPES["camera"]) == expected
    check_shape(network(pictures), expected)
    assert repr(network)
    if feature_dimension:
        check_step(network, lambda: network(pictures).square().mean())


def test_visual_core_without_flattening(core):
    core |= {"flatten": False, "feature_dimension": None}
    core["backbone_kwargs"]["output"] = "spatial"
    network = VisualCore(input_shape=SHAPES["camera"], **core)
    assert network.output_shape(SHAPES["camera"]) == [512, 2, 2]
    check_shape(network(torch.rand(B, *SHAPES["camera"])), [512, 2, 2])


def test_config_of_the_first_version_is_translated(encoder_path):
    """`visual_core`, `visual_feature_dimension`: as robomimic's oldest checkpoints say it."""
    old = {
        "visual_core": "MCRConv",
        "visual_feature_dimension": 24,
        "visual_core_kwargs": {"pretrained": True},
        "use_spatial_softmax": False,
    }
    config = {"observation": {"modalities": {"obs": {"image": ["camera"]}}, "encoder": old}}
    file_utils.update_config(config)
    core = config["observation"]["encoder"]["rgb"]["core_kwargs"]
    core["backbone_kwargs"]["weights"] = encoder_path
    core.setdefault("pool_class", None)
    assert VisualCore(input_shape=SHAPES["camera"], **core).output_shape(None) == [24]


# ------------------------------------------------------------------------ randomizers


def camera_encoder(core: dict, randomizer) -> ObservationEncoder:
    network = ObservationEncoder(feature_activation=None)
    keyword = "randomizer" if hasattr(network, "obs_share_mods") else "randomizers"
    network.register_obs_key(
        name="camera",
        shape=SHAPES["camera"],
        net_class="VisualCore",
        net_kwargs=core,
        **{keyword: randomizer},
    )
    network.make()
    return network


def test_crop_randomizer_averages_several_crops(core):
    randomizer = CropRandomizer(SHAPES["camera"], crop_height=40, crop_width=32, num_crops=3)
    network = camera_encoder(core, randomizer)
    pictures = batch({"camera": SHAPES["camera"]}, B)
    crops = {}
    backbone = network.obs_nets["camera"]
    backbone.register_forward_hook(lambda _, inputs, output: crops.update(x=inputs[0], y=output))
    features = network.train()(pictures)
    assert list(crops["x"].shape) == [3 * B, 3, 40, 32]
    torch.testing.assert_close(features, crops["y"].view(B, 3, -1).mean(dim=1))
    check_shape(features, network.output_shape())
    check_step(network, lambda: network(pictures).square().mean())


def test_crop_randomizer_takes_the_centre_in_evaluation(core, encoder_path):
    core["feature_dimension"] = None
    randomizer = CropRandomizer(SHAPES["camera"], crop_height=40, crop_width=40, num_crops=1)
    network = camera_encoder(core, randomizer).eval()
    pictures = batch({"camera": SHAPES["camera"]}, B)
    centre = pictures["camera"][..., 4:44, 4:44]
    torch.testing.assert_close(network(pictures), load_model(encoder_path)(centre))


def test_color_randomizer_keeps_pictures_acceptable(core):
    randomizer = ColorRandomizer(SHAPES["camera"], 0.9, 0.9, 0.9, 0.5, num_samples=4)
    network = camera_encoder(core, randomizer)
    pictures = batch({"camera": SHAPES["camera"]}, B)
    pictures["camera"][0] = (pictures["camera"][0] > 0.5).float()  # extremes stay in [0, 1] too
    check_shape(network.train()(pictures), network.output_shape())
    check_step(network, lambda: network(pictures).square().mean())


def test_noise_needs_limits(core):
    pictures = {"camera": torch.ones(B, *SHAPES["camera"])}
    free = camera_encoder(core, GaussianNoiseRandomizer(SHAPES["camera"]))
    with pytest.raises(UserError, match=r"not \[0, 1\]"):
        free.train()(pictures)
    clipped = camera_encoder(core, GaussianNoiseRandomizer(SHAPES["camera"], limits=(0.0, 1.0)))
    check_shape(clipped.train()(pictures), clipped.output_shape())


def test_position_channels_are_refused(core):
    randomizer = CropRandomizer(SHAPES["camera"], crop_height=40, crop_width=40, pos_enc=True)
    with pytest.raises(UserError, match="pos_enc"):
        camera_encoder(core, randomizer)


# ------------------------------------------------------------------------ observation encoders


def test_observation_encoder_mixes_and_shares(core):
    network = ObservationEncoder(feature_activation=torch.nn.ReLU)
    network.register_obs_key(
        "camera",
        SHAPES["camera"],
        net_class="VisualCore",
        net_kwargs=core | {"input_shape": SHAPES["camera"]},
    )
    network.register_obs_key("camera2", SHAPES["camera"], share_net_from="camera")
    network.register_obs_key("proprio", [5], net=MLP(input_dim=5, output_dim=8, layer_dims=(6,)))
    network.make()
    inputs = batch(SHAPES, B)
    inputs["camera2"] = inputs["camera"]
    features = network(inputs)
    assert network.output_shape() == [16 + 16 + 8]
    check_shape(features, [40])
    assert torch.equal(features[:, :16], features[:, 16:32])
    assert network.obs_nets["camera"] is network.obs_nets["camera2"]
    check_step(network, lambda: network(inputs).square().mean())


def test_observation_encoder_factory(encoder_kwargs, encoder_path):
    encoder_kwargs["rgb"]["core_kwargs"]["feature_dimension"] = None
    network = obs_encoder_factory(SHAPES, encoder_kwargs=encoder_kwargs).eval()
    inputs = batch(SHAPES, B)
    features = load_model(encoder_path)(inputs["camera"])
    torch.testing.assert_close(network(inputs), torch.cat([features, inputs["proprio"]], dim=1))
    assert network.output_shape() == [512 + 5]


def test_relu_takes_half_of_a_vit(encoder_kwargs, vit_path):
    core = encoder_kwargs["rgb"]["core_kwargs"]
    core |= {"backbone_kwargs": {"weights": vit_path}, "feature_dimension": None}
    network = obs_encoder_factory(GOAL, encoder_kwargs=encoder_kwargs)
    pictures = batch(GOAL, B)
    features = load_model(vit_path)(pictures["camera"])
    assert 0.2 < (features < 0).float().mean() < 0.8
    torch.testing.assert_close(network(pictures), features.relu())


def test_observation_group_encoder_with_goals(encoder_kwargs):
    groups = OrderedDict(obs=SHAPES, goal=GOAL)
    network = ObservationGroupEncoder(groups, encoder_kwargs=encoder_kwargs)
    inputs = {"obs": batch(SHAPES, B), "goal": batch(GOAL, B)}
    assert network.output_shape() == [16 + 5 + 16]
    check_shape(network(**inputs), [37])
    check_step(network, lambda: network(**inputs).square().mean())


def test_observation_decoder(encoder_kwargs):
    encoder = obs_encoder_factory(SHAPES, encoder_kwargs=encoder_kwargs)
    shapes = OrderedDict(action_pos=(3,), action_orn=(4,))
    decoder = ObservationDecoder(shapes, input_feat_dim=encoder.output_shape()[0])
    network = torch.nn.Sequential(encoder, decoder)
    inputs = batch(SHAPES, B)
    check_shape(network(inputs), decoder.output_shape())
    check_step(network, lambda: sum(x.square().mean() for x in network(inputs).values()))


# ------------------------------------------------------------------------ MIMO


def test_mimo_mlp(encoder_kwargs):
    network = MIMO_MLP(
        OrderedDict(obs=SHAPES, goal=GOAL),
        OrderedDict(action=(A,), value=(1,)),
        layer_dims=(32,),
        encoder_kwargs=encoder_kwargs,
    )
    inputs = {"obs": batch(SHAPES, B), "goal": batch(GOAL, B)}
    check_shape(network(**inputs), network.output_shape())
    check_step(network, lambda: sum(x.square().mean() for x in network(**inputs).values()))


def test_rnn_mimo_mlp(encoder_kwargs):
    network = RNN_MIMO_MLP(
        OrderedDict(obs=SHAPES),
        OrderedDict(action=(A,)),
        mlp_layer_dims=(32,),
        rnn_hidden_dim=16,
        rnn_num_layers=1,
        rnn_kwargs={"bidirectional": False},
        encoder_kwargs=encoder_kwargs,
    )
    inputs = batch(SHAPES, B, T)
    check_shape(network(obs=inputs), network.output_shape({"obs": STEPS}))
    state, outputs = network.get_rnn_init_state(B, CPU), []
    for step in range(T):
        now = {key: values[:, step : step + 1] for key, values in inputs.items()}
        output, state = network(rnn_init_state=state, return_state=True, obs=now)
        outputs.append(output["action"])
    torch.testing.assert_close(torch.cat(outputs, dim=1), network(obs=inputs)["action"])
    check_step(network, lambda: network(obs=inputs)["action"].square().mean())


# ------------------------------------------------------------------------ actors


def test_actor(encoder_kwargs):
    network = ActorNetwork(SHAPES, A, (32,), goal_shapes=GOAL, encoder_kwargs=encoder_kwargs)
    inputs = batch(SHAPES, B), batch(GOAL, B)
    check_shape(network(*inputs), network.output_shape())
    assert network(*inputs).abs().max() <= 1
    check_step(network, lambda: network(*inputs).square().mean())


def test_perturbation_actor(encoder_kwargs):
    network = PerturbationActorNetwork(
        SHAPES, A, (32,), perturbation_scale=0.1, encoder_kwargs=encoder_kwargs
    )
    observations, actions = batch(SHAPES, B), torch.zeros(B, A)
    perturbed = network(observations, actions)
    check_shape(perturbed, network.output_shape())
    assert perturbed.abs().max() <= 0.1
    check_step(network, lambda: network(observations, actions).square().mean())


@pytest.mark.parametrize("actor", [GaussianActorNetwork, GMMActorNetwork])
def test_stochastic_actors(actor, encoder_kwargs):
    network = actor(SHAPES, A, (32,), encoder_kwargs=encoder_kwargs)
    observations, actions = batch(SHAPES, B), torch.rand(B, A)
    check_shape(network(observations), network.output_shape())
    check_step(network, lambda: -network.forward_train(observations).log_prob(actions).mean())


RNN = {
    "mlp_layer_dims": (32,),
    "rnn_hidden_dim": 16,
    "rnn_num_layers": 1,
    "rnn_kwargs": {"bidirectional": False},
}


def test_rnn_actor(encoder_kwargs):
    network = RNNActorNetwork(SHAPES, A, **RNN, goal_shapes=GOAL, encoder_kwargs=encoder_kwargs)
    inputs = batch(SHAPES, B, T), batch(GOAL, B)
    check_shape(network(*inputs), network.output_shape(STEPS))
    check_step(network, lambda: network(*inputs).square().mean())


def test_rnn_gmm_actor(encoder_kwargs):
    network = RNNGMMActorNetwork(SHAPES, A, **RNN, encoder_kwargs=encoder_kwargs)
    observations, actions = batch(SHAPES, B, T), torch.rand(B, T, A)
    check_shape(network(observations), network.output_shape(STEPS))
    check_step(network, lambda: -network.forward_train(observations).log_prob(actions).mean())


# ------------------------------------------------------------------------ values


def test_value(encoder_kwargs):
    network = ValueNetwork(SHAPES, (32,), goal_shapes=GOAL, encoder_kwargs=encoder_kwargs)
    inputs = batch(SHAPES, B), batch(GOAL, B)
    check_shape(network(*inputs), network.output_shape())
    check_step(network, lambda: (network(*inputs) - 1).square().mean())


def test_action_value(encoder_kwargs):
    network = ActionValueNetwork(SHAPES, A, (32,), encoder_kwargs=encoder_kwargs)
    inputs = batch(SHAPES, B), torch.rand(B, A)
    check_shape(network(*inputs), network.output_shape())
    check_step(network, lambda: (network(*inputs) - 1).square().mean())


def test_distributional_action_value(encoder_kwargs):
    network = DistributionalActionValueNetwork(
        SHAPES, A, (32,), value_bounds=(-1.0, 1.0), num_atoms=11, encoder_kwargs=encoder_kwargs
    )
    inputs = batch(SHAPES, B), torch.rand(B, A)
    distribution = network.forward_train(*inputs)
    check_shape(distribution.probs, [11])
    # robomimic 0.3.0 returns [B], although its output_shape says [1]
    torch.testing.assert_close(distribution.mean(), network(*inputs).reshape(B))
    check_step(network, lambda: -network.forward_train(*inputs).logits[:, -1].mean())


# ------------------------------------------------------------------------ VAEs

PRIORS = {
    "standard": {},
    "learned Gaussian": {"prior_learn": True, "prior_is_conditioned": True},
    "GMM": {"prior_learn": True, "prior_use_gmm": True, "prior_gmm_num_modes": 3},
    "learned GMM weights": {
        "prior_learn": True,
        "prior_is_conditioned": True,
        "prior_use_gmm": True,
        "prior_gmm_num_modes": 3,
        "prior_gmm_learn_weights": True,
    },
    "categorical": {
        "prior_learn": True,
        "prior_is_conditioned": True,
        "prior_use_categorical": True,
        "prior_categorical_dim": 4,
    },
}
LAYERS = {"encoder_layer_dims": (32,), "decoder_layer_dims": (32,)}


def vae_loss(outputs: dict) -> torch.Tensor:
    return outputs["reconstruction_loss"] + 0.1 * outputs["kl_loss"]


@pytest.mark.parametrize("prior", PRIORS)
def test_vae(prior, encoder_kwargs):
    """Actions given pictures and proprioception."""
    shapes = OrderedDict(action=(A,))
    network = VAE(
        shapes,
        shapes,
        latent_dim=4,
        device=CPU,
        condition_shapes=SHAPES,
        prior_layer_dims=(16,),
        encoder_kwargs=encoder_kwargs,
        **LAYERS,
        **PRIORS[prior],
    )
    if prior == "categorical":
        network.set_gumbel_temperature(1.0)
    actions, observations = {"action": torch.rand(B, A)}, batch(SHAPES, B)
    check_step(network, lambda: vae_loss(network(actions, actions, conditions=observations)))
    latent = network.sample_prior(n=B, conditions=observations)
    check_shape(network.decode(conditions=observations, z=latent), {"action": [A]})


def test_vae_of_pictures(encoder_kwargs):
    """Proprioception reconstructed from a picture: the encoder in the VAE's own encoder."""
    network = VAE(
        GOAL,
        OrderedDict(proprio=(5,)),
        latent_dim=4,
        device=CPU,
        encoder_kwargs=encoder_kwargs,
        **LAYERS,
    )
    pictures, proprio = batch(GOAL, B), {"proprio": torch.rand(B, 5)}
    check_step(network, lambda: vae_loss(network(pictures, proprio)))
    check_shape(network(pictures, proprio)["decoder_outputs"], {"proprio": [5]})


@pytest.mark.parametrize("prior", PRIORS)
def test_vae_actor(prior, encoder_kwargs):
    network = VAEActor(
        SHAPES,
        A,
        latent_dim=4,
        device=CPU,
        prior_layer_dims=(16,),
        encoder_kwargs=encoder_kwargs,
        **LAYERS,
        **PRIORS[prior],
    )
    if prior == "categorical":
        network.set_gumbel_temperature(1.0)
    observations, actions = batch(SHAPES, B), torch.rand(B, A) - 0.5
    check_step(network, lambda: vae_loss(network.forward_train(actions, observations)))
    check_shape(network(observations), network.output_shape())
    assert np.isfinite(network(observations).detach().numpy()).all()
