"""Every known layout fills the network completely; every wrong file gets one clear sentence."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

from mcr.errors import UserError
from mcr.models.layouts import LAYOUTS, read_weights
from mcr.models.loading import load_model
from mcr.release.export import export_encoder

MCR_HEADS = ("state_encoder.0.weight", "bc_trunk.0.bias", "bc_policy.4.weight")
R3M_HEADS = ("lang_enc.model.embeddings.word_embeddings.weight", "lang_rew.pred.0.weight")

FILES = {
    "released": lambda net, snap: net.state_dict(),
    "released, DataParallel": lambda net, snap: nn.DataParallel(net).state_dict(),
    "released, compiled": lambda net, snap: torch.compile(net).state_dict(),
    "MCR snapshot": lambda net, snap: {"mcr": snap(*MCR_HEADS)},
    "MCR snapshot.pt": lambda net, snap: {"mcr": snap(*MCR_HEADS), "global_step": 20000},
    "MCR snapshot without heads": lambda net, snap: {"mcr": snap()},
    "R3M": lambda net, snap: {"r3m": snap(*R3M_HEADS), "global_step": 1500000},
}


def assert_holds(path, network):
    """The file gives exactly the tensors of `network`, and its features."""
    encoder = load_model(path)
    state, expected = encoder.state_dict(), network.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(encoder._pooled(pixels), network(pixels))


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_files_of_others(content, network, snapshot, save):
    assert_holds(save(content(network, snapshot)), network)


# Those with timm's names are in test_vision_transformer.py, VIP's last layer in test_sources.py.
@pytest.mark.parametrize(
    "layout", [each for each in LAYOUTS if not each.timm_names], ids=lambda layout: layout.name
)
def test_every_layout_reads_what_its_entry_says(layout, make_network, checkpoint, save):
    network = make_network("vit_ti_16" if layout.mark.startswith("heads") else "resnet18")
    tensors = {layout.prefix + name: tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"{name}weight": torch.zeros(2) for name in layout.ignored}
    tensors |= {layout.mark: torch.zeros(1000, 2)} if layout.mark else {}
    content = {layout.holder: tensors} if layout.holder else tensors
    path = save({**checkpoint, **content} if layout.described else content)
    assert read_weights(path).layout == layout.name
    assert_holds(path, network)


def test_training_checkpoint(checkpoint, network, save):
    checkpoint["encoder_config"] |= {"image_size": 96, "resize": 110}
    path = save(checkpoint)
    assert_holds(path, network)
    weights = read_weights(path)
    assert (weights.preprocessing.image_size, weights.preprocessing.resize) == (96, 110)
    assert set(weights.provenance) == {"step", "config", "dataset", "versions"}


def test_exports(checkpoint, network, save, tmp_path):
    export_encoder(save(checkpoint), tmp_path / "out")
    assert_holds(tmp_path / "out", network)
    assert_holds(tmp_path / "out" / "model.safetensors", network)


def test_legacy_serialisation(network, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_holds(path, network)


@pytest.mark.parametrize("name, count", [("resnet34", 216), ("resnet50", 318), ("vit_ti_16", 150)])
def test_backbone_is_inferred_and_the_count_is_reported(name, count, make_network, save, caplog):
    network = make_network(name)
    path = save(network.state_dict())
    with caplog.at_level(logging.INFO):
        assert_holds(path, network)
    assert f"{count}/{count} tensors loaded from {path}" in caplog.text
    assert name in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32_with_a_message(dtype, network, save, caplog):
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    encoder = load_model(save(tensors))
    assert encoder.conv1.weight.dtype == torch.float32
    assert encoder.bn1.num_batches_tracked.dtype == torch.int64
    assert f"weights are {dtype}: converted to float32" in caplog.text
    torch.testing.assert_close(encoder.conv1.weight, network.conv1.weight, rtol=0.01, atol=0.01)


# --------------------------------------------------------------------------- wrong tensors

WRONG_TENSORS = {
    "missing": (
        lambda t: t.pop("bn1.weight"),
        r"released.*do not fill a resnet18: 1 missing \(bn1.weight\)",
    ),
    "extra": (
        lambda t: t.update({"fc2.weight": torch.zeros(2), "fc2.bias": torch.zeros(2)}),
        r"2 unexpected \(fc2.weight, fc2.bias\)",
    ),
    "renamed": (
        lambda t: t.update({"bn_1.bias": t.pop("bn1.bias")}),
        r"1 missing \(bn1.bias\); 1 unexpected \(bn_1.bias\)",
    ),
    "misshapen": (
        lambda t: t.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}),
        r"conv1.weight is float \[64, 3, 3, 3\], not float \[64, 3, 7, 7\]",
    ),
    "quantised by hand": (
        lambda t: t.update({"bn1.bias": torch.zeros(64, dtype=torch.int8)}),
        r"bn1.bias is integer \[64\], not float \[64\]",
    ),
    "many missing": (
        lambda t: [t.pop(name) for name in list(t)[:10]],
        r"10 missing \(conv1.weight, bn1.weight, bn1.bias and 7 more\)",
    ),
    "NaN": (
        lambda t: t.update({"bn1.bias": torch.full((64,), torch.nan)}),
        "the tensor bn1.bias holds NaN or infinity",
    ),
    "another network": (
        lambda t: [t.update({f"model.{name}": t.pop(name)}) for name in list(t)],
        "no encoder known here",
    ),
}


@pytest.mark.parametrize("change, message", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_a_partly_random_encoder_cannot_come_out(change, message, network, tmp_path):
    tensors = dict(network.state_dict())
    change(tensors)
    path = tmp_path / "released.pth"
    torch.save(tensors, path)
    with pytest.raises(UserError, match=message):
        load_model(path)


@pytest.mark.parametrize("holder", ["mcr", "r3m"])
def test_unknown_tensors_are_not_ignored(holder, snapshot, save):
    path = save({holder: snapshot("some_head.weight")})
    with pytest.raises(UserError, match=r"1 unexpected \(some_head.weight\)"):
        load_model(path)


WRONG_CONTENT = {
    "newer checkpoint": (
        lambda c: c | {"format": "mcr-checkpoint-2"},
        "is 'mcr-checkpoint-2', not",
    ),
    "foreign checkpoint": (lambda c: {"encoder": c["encoder"]}, "its format is None"),
    "no config": (lambda c: c | {"encoder_config": None}, "encoder_config is a NoneType"),
    "unknown backbone": (
        lambda c: c | {"encoder_config": c["encoder_config"] | {"backbone": "resnet19"}},
        "'resnet19' is unknown; did you mean 'resnet18'",
    ),
    "other backbone": (
        lambda c: c | {"encoder_config": c["encoder_config"] | {"backbone": "resnet34"}},
        "do not fill a resnet34: 96 missing",
    ),
    "no tensors": (lambda c: {"config": {"a": 1}}, r"no weights in a layout known here \(keys: c"),
    "empty": (lambda c: {}, "no weights in a layout known here"),
    "a list": (lambda c: [1, 2], "holds a list, not a dictionary"),
    "one tensor": (lambda c: torch.zeros(3), "holds a Tensor, not a dictionary"),
}


@pytest.mark.parametrize("change, message", WRONG_CONTENT.values(), ids=WRONG_CONTENT)
def test_wrong_content(change, message, checkpoint, save):
    path = save(change(checkpoint))
    with pytest.raises(UserError, match=message) as error:
        load_model(path)
    assert str(error.value).startswith(str(path))


# --------------------------------------------------------------------------- wrong places


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth: no such file"):
        load_model(tmp_path / "nowhere.pth")


@pytest.fixture
def export(released, tmp_path):
    export_encoder(released, tmp_path / "out")
    return tmp_path / "out"


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


WRONG_EXPORTS = {
    "no config": (lambda e: (e / "config.json").unlink(), "there is no config.json in the folder"),
    "no weights": (lambda e: (e / "model.safetensors").unlink(), "there is no model.safetensors"),
    "cut weights": (lambda e: cut(e / "model.safetensors"), "model.safetensors is damaged"),
    "page for weights": (lambda e: (e / "model.safetensors").write_text("<html>"), "a web page"),
    "config not JSON": (lambda e: (e / "config.json").write_text("{"), "config.json is not JSON"),
    "config of others": (
        lambda e: (e / "config.json").write_text("{}"),
        "no encoder of the format",
    ),
    "config of others, a list": (lambda e: (e / "config.json").write_text("[]"), "no encoder of"),
    "config without encoder": (
        lambda e: (e / "config.json").write_text('{"mcr": {"format": "mcr-encoder-1"}}'),
        "encoder_config is a NoneType",
    ),
}


@pytest.mark.parametrize("spoil, message", WRONG_EXPORTS.values(), ids=WRONG_EXPORTS)
def test_wrong_exports(spoil, message, export):
    spoil(export)
    with pytest.raises(UserError, match=message):
        load_model(export)


def test_the_config_of_an_export_decides_the_preprocessing(export):
    config = json.loads((export / "config.json").read_text())
    config["mcr"]["encoder_config"] |= {"image_size": 64, "resize": 80}
    (export / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="contradicts itself.*input_size, crop_pct"):
        load_model(export)
    config["pretrained_cfg"] |= {"input_size": [3, 64, 64], "crop_pct": 64 / 80}
    (export / "config.json").write_text(json.dumps(config))
    assert load_model(export).preprocess(torch.rand(3, 90, 90)).shape == (3, 64, 64)
