"""An Encoder equals torchvision's network with its transforms, and stays as it was loaded."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.distributed import HashStore

import mcr
from mcr.errors import UserError
from mcr.models.backbones import BACKBONES, build_backbone
from mcr.models.layouts import Weights
from mcr.models.loading import build_encoder
from mcr.models.preprocessing import Preprocessing

IMAGES = torch.rand(2, 3, 180, 320, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoder(released):
    return mcr.load_model(released)


@pytest.fixture
def vit(make_network, save):
    return mcr.load_model(save(make_network("vit_ti_16").state_dict()))


def test_equals_torchvision_with_its_transforms(encoder, network):
    transforms = torchvision.transforms
    pipeline = transforms.Compose(
        [
            transforms.Resize(256, antialias=True),
            transforms.CenterCrop(224),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with torch.no_grad():
        torch.testing.assert_close(encoder(IMAGES), network(pipeline(IMAGES)))


def test_is_a_torchvision_network(encoder, vit):
    assert isinstance(encoder, torchvision.models.ResNet) and isinstance(encoder, mcr.Encoder)
    assert isinstance(vit, torchvision.models.VisionTransformer) and isinstance(vit, mcr.Encoder)
    assert isinstance(encoder.fc, nn.Identity) and isinstance(vit.heads, nn.Identity)


def test_leading_dimensions(encoder):
    pooled = encoder(IMAGES)
    assert pooled.shape == (2, encoder.embed_dim) == (2, 512)
    torch.testing.assert_close(encoder(IMAGES[0]), pooled[0])
    torch.testing.assert_close(encoder(IMAGES[:, None, None]), pooled[:, None, None])


SMALL = [name for name in BACKBONES if not name.startswith(("vit_l", "vit_b_14"))]


@pytest.mark.parametrize("name", SMALL)
def test_every_backbone_has_every_output(name):
    size = 28 if "_14" in name else 32
    backbone, preprocessing = build_backbone(name, size).eval(), Preprocessing.for_size(size)
    weights = Weights(Path("memory"), "test", backbone.state_dict(), name, preprocessing)
    encoder = build_encoder(weights)
    with torch.no_grad():
        torch.testing.assert_close(encoder(IMAGES), backbone(encoder.preprocess(IMAGES)))
    width = BACKBONES[name].embed_dim
    assert encoder(IMAGES).shape == (2, width) == (2, encoder.embed_dim) == (2, backbone.embed_dim)
    spatial = encoder.features(IMAGES, "spatial")
    channels = 2048 if name.startswith("resnet50") else width  # VIP's last layer comes after
    assert spatial.shape[:2] == (2, channels)
    assert encoder.features(IMAGES, "tokens").shape == (2, spatial[0, 0].numel(), channels)
    assert encoder.grad_cam_layer in list(encoder.modules())


def test_outputs_of_a_resnet(encoder):
    spatial = encoder.features(IMAGES, output="spatial")
    assert spatial.shape == (2, 512, 7, 7)
    torch.testing.assert_close(spatial.mean((-2, -1)), encoder(IMAGES))
    tokens = encoder.features(IMAGES, output="tokens")
    assert torch.equal(tokens, spatial.flatten(-2).mT)
    with pytest.raises(UserError, match="did you mean 'spatial'"):
        encoder.features(IMAGES, output="spacial")


def test_outputs_of_a_vit(vit):
    with torch.no_grad():
        spatial = vit.features(IMAGES, output="spatial")
        tokens = vit.features(IMAGES[None], output="tokens")
        all_tokens = []  # the class token first, then the patches
        vit.encoder.register_forward_hook(lambda *hooked: all_tokens.append(hooked[-1]))
        pooled = vit(IMAGES)
    assert spatial.shape == (2, 192, 14, 14) and tokens.shape == (1, 2, 196, 192)
    torch.testing.assert_close(spatial.flatten(-2).mT, all_tokens[0][:, 1:])
    torch.testing.assert_close(tokens[0], all_tokens[0][:, 1:])
    torch.testing.assert_close(pooled, all_tokens[0][:, 0])


def test_pretrained_cfg(encoder):
    assert encoder.pretrained_cfg == {
        "architecture": "resnet18",
        "input_size": (3, 224, 224),
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "num_classes": 0,
    }


# --------------------------------------------------------------------------- frozen


class Policy(nn.Module):
    """What users build: an encoder and a head."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(encoder.embed_dim, 7), nn.Dropout(0.5))

    def forward(self, images):
        return self.head(self.encoder(images))


def train_a_little(policy):
    policy.train()
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        policy(IMAGES).square().sum().backward()
        optimizer.step()


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_ddp(module):
    """DistributedDataParallel around a policy, as it broadcasts and hooks parameters."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=HashStore())
    try:
        wrapped = nn.parallel.DistributedDataParallel(Policy(module))
        train_a_little(wrapped)
        return wrapped.module.encoder
    finally:
        torch.distributed.destroy_process_group()


def through_state_dict(module, assign=False):
    """Load into a new policy whose encoder is as loaded and whose head has been trained."""
    trained, fresh = Policy(copy.deepcopy(module)), Policy(module)
    train_a_little(trained)
    fresh.load_state_dict(trained.state_dict(), assign=assign)
    return fresh.encoder


TRIPS = {
    "as loaded": lambda module: module,
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "torch.save": through_torch_save,
    "to": lambda module: module.to("cpu", memory_format=torch.channels_last),
    "float": lambda module: module.double().float(),
    "DDP": through_ddp,
    "load_state_dict": through_state_dict,
    "load_state_dict, assign": lambda module: through_state_dict(module, assign=True),
    "share_memory": lambda module: module.share_memory(),
    "apply": lambda module: module.apply(lambda each: each.train()),
    "compiled": lambda module: torch.compile(module, backend="eager"),
}


@pytest.mark.parametrize("trip", TRIPS.values(), ids=TRIPS)
def test_frozen_means_frozen(trip, encoder):
    expected, before = encoder(IMAGES), copy.deepcopy(encoder.state_dict())
    policy = Policy(trip(encoder))
    head = policy.head[0].weight.clone()
    train_a_little(policy)
    assert policy.head.training and not torch.equal(policy.head[0].weight, head)
    after = policy.encoder.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(after.values(), before.values(), strict=True))
    torch.testing.assert_close(policy.encoder(IMAGES), expected)


def test_its_layers_stay_frozen_in_another_module(encoder):
    trunk = nn.Sequential(*list(encoder.children())[:-2]).train()
    before = copy.deepcopy(trunk.state_dict())
    trunk(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


def test_a_frozen_encoder_records_no_graph_but_lets_gradients_through(encoder):
    assert not encoder(IMAGES).requires_grad
    images = IMAGES.clone().requires_grad_()
    maps = []
    encoder.layer4.register_forward_hook(lambda *hooked: maps.append(hooked[-1]))
    encoder(images).max().backward(inputs=[images, maps[0]])  # Grad-CAM needs the map's
    assert images.grad.abs().sum() > 0 and maps[0].grad.abs().sum() > 0


def test_partial_unfreezing(released):
    encoder = mcr.load_model(released, trainable=["layer4.1", "layer4.0.conv1.weight"])
    learning = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert learning == {
        "layer4.0.conv1.weight",
        *(f"layer4.1.conv{i}.weight" for i in (1, 2)),
        *(f"layer4.1.bn{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
    }
    before = copy.deepcopy(encoder.state_dict())
    train_a_little(Policy(encoder))
    changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == learning  # so no statistics changed


def test_other_precisions_stay_frozen(encoder):
    dtype = torch.bfloat16
    expected = encoder(IMAGES)
    encoder = encoder.to(dtype)
    before = copy.deepcopy(encoder.state_dict())
    policy = Policy(encoder)
    policy.head.to(dtype)
    train_a_little(policy)
    assert all(torch.equal(t, before[name]) for name, t in encoder.state_dict().items())
    features = encoder(IMAGES)
    assert features.dtype == dtype
    assert nn.functional.cosine_similarity(features.float(), expected).min() > 0.99


@pytest.mark.parametrize(
    "name, hint", [("layer5", "did you mean 'layer"), ("fc", "choose from: bn1")]
)
def test_unknown_layers_to_train(name, hint, released):
    with pytest.raises(UserError, match=f"trainable='{name}' has no parameters .*{hint}"):
        mcr.load_model(released, trainable=name)


# --------------------------------------------------------------------------- norms of features


def test_layer_norm_has_no_parameters(released, encoder):
    normed = mcr.load_model(released, feature_norm="layer_norm")
    assert list(normed.state_dict()) == list(encoder.state_dict())
    expected = nn.functional.layer_norm(encoder(IMAGES), (512,))
    torch.testing.assert_close(normed(IMAGES), expected)
    tokens = nn.functional.layer_norm(encoder.features(IMAGES, "tokens"), (512,))
    torch.testing.assert_close(normed.features(IMAGES, "tokens"), tokens)
    spatial = normed.features(IMAGES, "spatial")
    torch.testing.assert_close(spatial.flatten(-2).mT, tokens)


def test_statistics_are_part_of_the_state_dict(released, encoder):
    z = encoder(IMAGES)
    mean, std = z.mean(0), z.std(0)
    std[7] = 0  # a constant unit is only shifted
    normed = mcr.load_model(released, feature_norm=(mean, std))
    std = std.where(std > 0, torch.tensor(1.0))
    torch.testing.assert_close(normed(IMAGES), (z - mean) / std)
    spatial = (encoder.features(IMAGES, "spatial") - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normed.features(IMAGES, "spatial"), spatial)
    added = set(normed.state_dict()) - set(encoder.state_dict())
    assert added == {"feature_mean", "feature_std"}
    with pytest.raises(RuntimeError, match="feature_mean"):  # loading without them is an error
        encoder.load_state_dict(normed.state_dict())
    half = normed.to(torch.bfloat16)(IMAGES)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "norm, message",
    [
        ("layernorm", "did you mean 'layer_norm'"),
        ((torch.zeros(3), torch.ones(3)), r"shapes \(3,\) and \(3,\): .* \(512,\) each"),
        ((torch.zeros(512), -torch.ones(512)), "not negative"),
        ((torch.full((512,), torch.nan), torch.ones(512)), "must be finite"),
    ],
)
def test_wrong_norms(norm, message, released):
    with pytest.raises(UserError, match=message):
        mcr.load_model(released, feature_norm=norm)


# --------------------------------------------------------------------------- load_mcr, import


def test_load_mcr_is_the_bare_network(released, network):
    with pytest.warns(UserWarning, match="ImageNet-normalise images yourself"):
        bare = mcr.load_mcr(released, device="cpu")
    assert type(bare) is torchvision.models.ResNet and not bare.training
    assert all(parameter.requires_grad for parameter in bare.parameters())
    pixels = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(bare(pixels), network(pixels))


def test_importing_mcr_imports_neither_torch_nor_hydra():
    program = "import mcr, sys; print({'torch', 'hydra', 'numpy'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert run.stdout.strip() == "set()", run.stderr


def test_every_public_name_resolves():
    assert all(getattr(mcr, name) for name in mcr.__all__)
    assert set(mcr.__all__) <= set(dir(mcr))
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        mcr.load_modle  # noqa: B018
