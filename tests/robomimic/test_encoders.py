"""Our encoders as robomimic's backbones: options, errors, shapes, freezing, replaced names."""

import pytest
import robomimic.models.base_nets as base_nets
import robomimic.models.obs_core as obs_core
import torch
import torchvision
from robomimic.models.obs_core import VisualCore

from mcr import UserError, load_model
from mcr.models.catalogue import MODELS
from mcr.robomimic import EncoderConv, MCRConv, MVPConv, R3MConv
from mcr.robomimic.encoders import MVP_CLASSES, R3M_CLASSES

PICTURES = torch.rand(2, 3, 84, 84, generator=torch.Generator().manual_seed(0))
CLASSES = [EncoderConv, MCRConv, R3MConv, MVPConv]


@pytest.fixture(scope="module")
def r3m_path(tmp_path_factory):
    """R3M's layout: what its model.pt holds, in DataParallel, with a language part beside."""
    network = torchvision.models.resnet18()
    network.fc = torch.nn.Identity()
    tensors = {f"module.convnet.{name}": t for name, t in network.state_dict().items()}
    tensors |= {"module.lang_rew.pred.0.weight": torch.zeros(2, 2)}
    path = tmp_path_factory.mktemp("r3m") / "model.pt"
    torch.save({"r3m": tensors}, path)
    return path, network.eval()


# ------------------------------------------------------------------------ found by name


@pytest.mark.parametrize("backbone", CLASSES)
def test_robomimic_finds_the_class_by_its_name(backbone):
    name = backbone.__name__
    assert eval(name, vars(obs_core)) is backbone  # as VisualCore of 0.3 and 0.5 does
    assert getattr(base_nets, name) is backbone
    assert issubclass(backbone, base_nets.ConvBase)


def test_registry_of_newer_versions_holds_ours():
    import robomimic.utils.obs_utils as obs_utils

    registry = getattr(obs_utils, "OBS_ENCODER_BACKBONES", None)
    if registry is None:
        pytest.skip("robomimic 0.3 has no registry of backbones")
    assert [registry[backbone.__name__] for backbone in CLASSES] == CLASSES


# ------------------------------------------------------------------------ what they compute


def test_pooled_output_is_that_of_the_encoder(encoder_path):
    backbone = EncoderConv(weights=encoder_path)
    features = backbone(PICTURES)
    assert torch.equal(features, load_model(encoder_path)(PICTURES))
    assert list(features.shape[1:]) == backbone.output_shape([3, 84, 84]) == [512]


@pytest.mark.parametrize("source", ["encoder_path", "vit_path"])
@pytest.mark.parametrize("output", ["pooled", "spatial"])
@pytest.mark.parametrize("shape", [(84, 84), (76, 60), (64, 64)])
def test_output_shape_is_the_shape_of_the_output(source, output, shape, request):
    backbone = MCRConv(weights=request.getfixturevalue(source), output=output)
    pictures = torch.rand(2, 3, *shape)
    assert list(backbone(pictures).shape[1:]) == backbone.output_shape([3, *shape])


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "vit_s_16"])
def test_mcr_model_classes_without_weights(name):
    backbone = MCRConv(mcr_model_class=name, pretrained=False)
    assert backbone.encoder.backbone == name
    assert list(backbone(PICTURES[:1]).shape[1:]) == backbone.output_shape([3, 84, 84])


# ------------------------------------------------------------------------ R3M, MVP


@pytest.mark.parametrize(("name", "width"), zip(R3M_CLASSES, (512, 512, 2048), strict=True))
def test_r3m_classes_need_no_package(name, width):
    assert R3MConv(r3m_model_class=name, pretrained=False).output_shape([3, 84, 84]) == [width]


def test_r3m_computes_what_its_network_does(r3m_path):
    path, network = r3m_path
    pictures = torch.rand(2, 3, 224, 224)  # of the final size, so only normalised
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network((pictures - mean[:, None, None]) / std[:, None, None])
    features = R3MConv(weights=str(path))(pictures)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_mvp_classes_are_robomimics():
    assert set(MVP_CLASSES) == {
        "vits-mae-hoi",
        "vits-mae-in",
        "vits-sup-in",
        "vitb-mae-egosoup",
        "vitl-256-mae-egosoup",
    }


@pytest.mark.parametrize("name", MVP_CLASSES)
def test_mvp_classes_need_no_package(name):
    backbone = MVPConv(mvp_model_class=name, pretrained=False)
    width = {"vits": 384, "vitb": 768, "vitl": 1024}[name[:4]]
    size = 256 if "256" in name else 224
    assert backbone.output_shape([3, 84, 84]) == [width]
    assert backbone.encoder.preprocessing.image_size == size
    assert backbone.encoder.preprocessing.resize == size  # MVP cuts nothing off
    assert list(backbone(PICTURES[:1]).shape) == [1, width]


def test_mvp_file_is_prepared_as_mvp(tmp_path):
    timm_names = to_timm(MVPConv(mvp_model_class="vits-mae-in", pretrained=False).encoder)
    torch.save({"model": timm_names}, tmp_path / "mine.pth")
    backbone = MVPConv(mvp_model_class="vits-mae-in", weights=str(tmp_path / "mine.pth"))
    assert backbone.encoder.backbone == "vit_s_16_h12"
    assert backbone.encoder.preprocessing == MODELS["mvp_vits-mae-in"].preprocessing


def to_timm(encoder) -> dict[str, torch.Tensor]:
    """torchvision's ViT under the names that MVP's files use."""
    names = {
        "conv_proj.": "patch_embed.proj.",
        "encoder.layers.encoder_layer_": "blocks.",
        ".ln_1.": ".norm1.",
        ".ln_2.": ".norm2.",
        ".self_attention.in_proj_": ".attn.qkv.",
        ".self_attention.out_proj.": ".attn.proj.",
        ".mlp.0.": ".mlp.fc1.",
        ".mlp.3.": ".mlp.fc2.",
        "encoder.ln.": "norm.",
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
    }
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        tensors[name] = tensor
    return tensors


@pytest.mark.parametrize("backbone", [R3MConv, MVPConv, MCRConv])
def test_default_weights_are_the_published_ones(backbone, monkeypatch, tmp_path):
    monkeypatch.setenv("MCR_WEIGHTS_PATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    name = {R3MConv: "r3m_resnet18", MVPConv: "mvp_vitb-mae-egosoup", MCRConv: "mcr_resnet50"}
    with pytest.raises(UserError, match=f"{name[backbone]}.*{tmp_path.name}"):
        backbone()


# ------------------------------------------------------------------------ frozen, or not


def learning(backbone) -> set[str]:
    return {name for name, p in backbone.encoder.named_parameters() if p.requires_grad}


def test_frozen_by_default(encoder_path):
    backbone = MCRConv(weights=encoder_path).train()
    assert not learning(backbone)
    assert not any(module.training for module in backbone.encoder.modules())


def test_unfrozen_layers_learn_and_statistics_stay(encoder_path):
    backbone = MCRConv(weights=encoder_path, freeze=False, trainable=["layer4"]).train()
    assert learning(backbone) and all(name.startswith("layer4.") for name in learning(backbone))
    statistics = backbone.encoder.layer4[0].bn1.running_mean.clone()
    backbone(PICTURES).sum().backward()
    assert backbone.encoder.layer4[0].conv1.weight.grad.abs().sum() > 0
    assert backbone.encoder.layer1[0].conv1.weight.grad is None
    assert torch.equal(backbone.encoder.layer4[0].bn1.running_mean, statistics)


def test_random_weights_that_learn_have_live_statistics():
    for freeze in (True, False):
        backbone = MCRConv(mcr_model_class="resnet18", pretrained=False, freeze=freeze).train()
        backbone(PICTURES)
        moved = backbone.encoder.bn1.num_batches_tracked.item()
        assert moved == (0 if freeze else 1)


@pytest.mark.parametrize("source", ["encoder_path", "vit_path"])
def test_unfrozen_without_layers_is_all_of_it(source, request):
    backbone = EncoderConv(weights=request.getfixturevalue(source), freeze=False)
    assert learning(backbone) == {name for name, _ in backbone.encoder.named_parameters()}


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({}, "names no weights"),
        ({"weights": "my_encodr"}, "my_encodr: no such file"),
        ({"weights": "W", "output": "spacial"}, "did you mean 'spatial'"),
        ({"weights": "W", "trainable": ["layer4"]}, "contradict"),
        ({"weights": "W", "freeze": False, "trainable": ["layer5"]}, "did you mean 'layer4'"),
        ({"weights": "W", "pretrained": False}, "leave out weights"),
        ({"weights": "W", "model_class": "resnet50"}, "resnet18, not the resnet50"),
        ({"pretrained": False}, "needs a model class"),
        ({"pretrained": False, "model_class": "resnet19"}, "did you mean 'resnet"),
        ({"weights": "W", "input_channel": 5}, "RGB, not 5 channels"),
    ],
)
def test_contradictions_are_refused(kwargs, complaint, encoder_path):
    if kwargs.get("weights") == "W":
        kwargs = kwargs | {"weights": encoder_path}
    with pytest.raises(UserError, match=complaint):
        EncoderConv(**kwargs)


@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [
        (MCRConv, {"mcr_model_class": "resnet19"}),
        (R3MConv, {"r3m_model_class": "resnet101"}),
        (MVPConv, {"mvp_model_class": "vitb"}),
    ],
)
def test_unknown_model_classes_are_refused(backbone, kwargs):
    with pytest.raises(UserError, match="is unknown"):
        backbone(pretrained=False, **kwargs)


def test_pictures_that_are_not_raw_are_refused(encoder_path):
    with pytest.raises(UserError, match="divide by 255"):
        EncoderConv(weights=encoder_path)(PICTURES * 255)


def test_pooled_features_with_spatial_softmax_are_refused(encoder_path):
    """robomimic's R3MConv lets this pass, and the softmax of a single pixel is a constant."""
    with pytest.raises(AssertionError):
        VisualCore(
            input_shape=[3, 84, 84],
            backbone_class="EncoderConv",
            backbone_kwargs={"weights": encoder_path},
            pool_class="SpatialSoftmax",
        )


def test_a_misspelt_option_does_not_give_a_random_encoder(encoder_path):
    """robomimic drops arguments that the signature does not name."""
    with pytest.raises(UserError, match="names no weights"):
        VisualCore(
            input_shape=[3, 84, 84],
            backbone_class="EncoderConv",
            backbone_kwargs={"weigths": encoder_path},
            pool_class=None,
        )
