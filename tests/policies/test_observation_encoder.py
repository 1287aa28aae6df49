"""The observation encoder: each option does what it says, and a frozen encoder stays frozen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import mcr
from mcr.errors import UserError
from mcr.models.preprocessing import IMAGENET_MEAN, Preprocessing
from mcr.models.untrained import write_untrained
from mcr.policies.observation_encoder import (
    ObservationConfig,
    ObservationEncoder,
    random_crops,
)

CAMERAS = ("front", "wrist")
SIZE = 32


def build(cameras=CAMERAS, low_dim=3, **options):
    torch.manual_seed(0)
    options = {"pretrained_encoder": False, "image_size": SIZE} | options
    return ObservationEncoder(ObservationConfig(**options), cameras, low_dim)


def pictures(count=4, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return {
        camera: torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8))
        for camera in CAMERAS
    }


SIGNALS = torch.arange(12.0).reshape(4, 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(write_untrained(tmp_path_factory.mktemp("w") / "w.pt", image_size=SIZE, seed=5))


def test_number_of_parameters():
    """ResNet-18 without fc has 11,176,512; (512 + 3) -> 256 -> 256 is 132,096 + 65,792."""
    frozen = build(cameras=["front"])
    count = mcr.count_parameters(frozen)
    assert str(count) == "197,888 / 11,374,400 parameters trainable (1.7%)"
    thawed = mcr.count_parameters(build(cameras=["front"], freeze_encoder=False))
    assert thawed.trainable == thawed.total == 11_374_400


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 256),
        ({"emb_dim": 0}, 2 * 512 + 3),
        ({"emb_dim": 0, "feature_norm": "layer_norm"}, 2 * 512 + 3),
        ({"emb_dim": 0, "feature_norm": "batch_norm"}, 2 * 512 + 3),
        ({"emb_dim": 0, "pooling": "tokens"}, 2 * 512 + 3),
        ({"emb_dim": 0, "pooling": "spatial_softmax"}, 2 * 64 + 3),
        ({"emb_dim": 64, "crops": 2}, 64),
        ({"emb_dim": 0, "rgb_model_name": "resnet50"}, 2 * 2048 + 3),
        ({"share_encoder": False, "freeze_encoder": False, "grad_checkpointing": True}, 256),
    ],
)
def test_pictures_and_cached_features_give_the_same_vector(options, width):
    module = build(**options)
    assert module.out_dim == width
    assert module(pictures(), SIGNALS).shape == (4, width)  # in training mode
    module.eval()
    expected = module(pictures(), SIGNALS)
    cached = module.from_features(module.features(pictures()), SIGNALS)
    torch.testing.assert_close(cached, expected)


def test_without_projection_it_is_features_and_standardised_signals(weights):
    module = build(encoder=weights, pretrained_encoder=True, image_size=0, emb_dim=0)
    module.low_dim.fit(SIGNALS)
    encoder = mcr.load_model(weights)
    images = pictures(size=48)
    vector = module(images, SIGNALS)
    for place, camera in enumerate(CAMERAS):
        torch.testing.assert_close(
            vector[:, 512 * place : 512 * (place + 1)], encoder(images[camera])
        )
    signals = vector[:, 1024:]
    torch.testing.assert_close(signals.mean(0), torch.zeros(3))
    torch.testing.assert_close(signals.square().mean(0), torch.ones(3))


def test_norms_of_features():
    images = pictures()
    layer = build(emb_dim=0, feature_norm="layer_norm", low_dim=0)(images)
    for camera in layer.split(512, dim=1):
        torch.testing.assert_close(camera.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    batch = build(emb_dim=0, feature_norm="batch_norm", low_dim=0)(images)
    torch.testing.assert_close(batch.mean(0), torch.zeros(1024), atol=1e-4, rtol=0)
    clipped = build(emb_dim=0, feature_norm="batch_norm", low_dim=0).eval()
    far = clipped.from_features(torch.tensor([-1e6, 1e6]).view(1, 2, 1).expand(1, 2, 512))
    assert far.unique().tolist() == [-5, 5]


def test_frozen_means_frozen_and_unfreezing_begins_at_the_output():
    module = build(feature_norm="batch_norm")
    before = {name: tensor.clone() for name, tensor in module.encoder.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()(pictures(), SIGNALS).sum().backward()
    optimizer.step()
    after = module.encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    def learning():
        names = [name for name, p in module.encoder.named_parameters() if p.requires_grad]
        return {name.split(".")[0] for name in names}

    assert learning() == set()
    module.unfreeze(1)
    assert learning() == {"layer4"}
    module.unfreeze(2)
    assert learning() == {"layer4", "layer3"}
    module.unfreeze()
    assert all(parameter.requires_grad for parameter in module.parameters())
    module.freeze()
    assert learning() == set()


def test_shared_or_separate():
    alike = {"front": pictures()["front"], "wrist": pictures()["front"]}
    shared, separate = build(emb_dim=0), build(emb_dim=0, share_encoder=False)
    assert (len(shared.encoders), len(separate.encoders)) == (1, 2)
    for module, same in ((shared, True), (separate, False)):
        front, wrist = module(alike, SIGNALS)[:, :1024].split(512, dim=1)
        assert torch.equal(front, wrist) is same


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for enable in (False, True):
        module = build(freeze_encoder=False, grad_checkpointing=enable)
        module(pictures(), SIGNALS).sum().backward()
        gradients.append(module.encoder.get_submodule("layer1.0.conv1").weight.grad)
    torch.testing.assert_close(*gradients)


def test_random_crops_are_parts_of_the_picture():
    pixels = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    torch.manual_seed(0)
    crops = random_crops(pixels, size=5, count=20)
    assert crops.shape == (40, 3, 5, 5)
    places = set()
    for number, crop in enumerate(crops):
        top, left = divmod(int(crop[0, 0, 0]) % 64, 8)
        places.add((top, left))
        assert torch.equal(crop, pixels[number // 20, :, top : top + 5, left : left + 5])
    assert {top for top, _ in places} == {left for _, left in places} == {0, 1, 2, 3}


def test_crops_are_averaged_in_training_and_central_afterwards():
    module = build(cameras=["front"], crops=200, emb_dim=0, low_dim=0)
    image = {"front": pictures(count=1, size=48)["front"]}
    first, second = module.train()(image), module(image)
    assert not torch.equal(first, second)
    assert (first - second).std() < 0.3 * build_single(image).std()  # averages of 200 agree
    expected = module.encoder(image["front"])  # the encoder's own centre crop
    torch.testing.assert_close(module.eval()(image), expected)
    torch.testing.assert_close(module(image), expected)


def build_single(image):
    """Features of single random crops of the same encoder."""
    module = build(cameras=["front"], crops=1, emb_dim=0, low_dim=0).train()
    return module({"front": image["front"].expand(50, -1, -1, -1)}) - module.encoder(image["front"])


def test_normalisation_is_the_encoders_own_or_imagenets(tmp_path):
    path = write_untrained(tmp_path / "w.pt", image_size=SIZE)
    content = torch.load(path, weights_only=True)
    content["encoder_config"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    torch.save(content, path)
    options = {"encoder": str(path), "pretrained_encoder": True, "image_size": 0}
    assert build(**options).encoder.preprocessing.mean == (0.5, 0.5, 0.5)
    imagenet = build(**options, normalisation="imagenet")
    assert imagenet.encoder.preprocessing.mean == IMAGENET_MEAN


def test_random_weights_see_pictures_as_the_trained_network_does():
    pytest.importorskip("timm")
    own = build(rgb_model_name="timm:test_resnet", image_size=0).encoder.preprocessing
    assert (own.image_size, own.resize) == (160, 168)  # what timm records
    assert build(image_size=0).encoder.preprocessing == Preprocessing()


def test_another_input_size(weights):
    options = {"encoder": weights, "pretrained_encoder": True}
    module = build(**options, image_size=64)
    seen = dataclasses.asdict(module.encoder.preprocessing)
    assert (seen["image_size"], seen["resize"]) == (64, 74)  # 37 / 32 of it
    with pytest.raises(UserError, match="a vit_ti_16 takes 32 pixels only"):
        vit = write_untrained(f"{weights}.vit", "vit_ti_16", image_size=32)
        build(encoder=str(vit), pretrained_encoder=True, image_size=64)


def test_bad_input(weights):
    for options, complaint in (
        ({"pooling": "softmax"}, "did you mean 'spatial_softmax'"),
        ({"normalisation": "image_net"}, "did you mean 'imagenet'"),
        ({"feature_norm": "layernorm"}, "did you mean 'layer_norm'"),
        ({"crops": -1}, "crops=-1 must be a whole number of at least 0"),
        ({"encoder": weights}, "pretrained_encoder=False means random weights: leave out encoder"),
        (
            {"rgb_model_name": "resnet19"},
            "name='resnet19' is unknown; did you mean 'resnet1",
        ),
        (
            {"encoder": weights, "pretrained_encoder": True, "rgb_model_name": "resnet50"},
            "is a resnet18: leave out rgb_model_name=resnet50",
        ),
    ):
        with pytest.raises(UserError, match=complaint):
            build(**options)
    module = build()
    with pytest.raises(UserError, match="no pictures of the camera 'wrist', only of front"):
        module({"front": pictures()["front"]}, SIGNALS)
    with pytest.raises(UserError, match=r"low_dim has the shape \[4, 2\], not \[4, 3\]"):
        module(pictures(), SIGNALS[:, :2])
    with pytest.raises(
        UserError, match=r"features have the shape \[4, 2, 384\], not \[B, 2, 512\]"
    ):
        module.from_features(torch.zeros(4, 2, 384), SIGNALS)
    with pytest.raises(UserError, match="looks like 0..255 floats"):
        module({camera: image.float() for camera, image in pictures().items()}, SIGNALS)


def test_crops_need_a_margin(tmp_path):
    path = write_untrained(tmp_path / "w.pt", image_size=SIZE)
    content = torch.load(path, weights_only=True)
    content["encoder_config"]["resize"] = SIZE
    torch.save(content, path)
    with pytest.raises(UserError, match="no room for random crops"):
        build(encoder=str(path), pretrained_encoder=True, image_size=0, crops=1)


def test_in_a_sequential_policy():
    policy = nn.Sequential(build(cameras=["front"], low_dim=0), nn.Linear(256, 4))
    groups = mcr.param_groups(policy, lr=1e-3)
    assert [group["name"] for group in groups] == ["policy", "encoder"]
