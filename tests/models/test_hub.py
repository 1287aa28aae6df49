"""`hf:` against a server on localhost that acts as the Hub."""

from __future__ import annotations

import sys
import time

import pytest
import torch

import mcr
from mcr.errors import UserError
from mcr.models.hub import Address, parse
from mcr.release.export import export_encoder
from tests import hub_server

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

IMAGES = torch.rand(2, 3, 90, 120, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def root(released, tmp_path_factory):
    """An export, a repository of loose files, a gated one, and the published name of ours."""
    root = tmp_path_factory.mktemp("hub")
    export_encoder(released, root / "lab" / "encoder")
    files = ("lab/loose/weights/small.pth", "GqJiang/robots-pretrain-robots/mcr_resnet50.pth")
    for file in files:
        (root / file).parent.mkdir(parents=True)
        (root / file).symlink_to(released)
    (root / "lab" / "gated").mkdir()
    (root / "lab" / "loose" / "broken.pth").write_bytes(b"PK\x03\x04 cut off")
    return root


@pytest.fixture
def hub(root, tmp_path, monkeypatch):
    """A Hub that serves `root`; its cache here is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_server.HubServer(root, revisions=("main", "v1.0")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize(
    "text, address",
    [
        ("hf:a/b", Address("a/b", "", None)),
        ("hf:a/b@v1.0", Address("a/b", "", "v1.0")),
        ("hf:a/b/c/d.pth@refs/pr/1", Address("a/b", "c/d.pth", "refs/pr/1")),
    ],
)
def test_addresses(text, address):
    assert parse(text) == address and str(address) == text


@pytest.mark.parametrize("text", ["hf:", "hf:name", "hf:/name", "hf:org/", "hf:org/name@"])
def test_wrong_addresses(text):
    with pytest.raises(UserError, match=r"is hf:org/name\[/file\]\[@revision\]"):
        parse(text)


@pytest.mark.parametrize(
    "address", ["hf:lab/encoder", "hf:lab/encoder@v1.0", "hf:lab/loose/weights/small.pth"]
)
def test_encoders_are_loaded_from_the_hub(address, hub, released):
    expected = mcr.load_model(released)(IMAGES)
    assert torch.equal(mcr.load_model(address)(IMAGES), expected)
    hub.requests.clear()
    assert torch.equal(mcr.load_model(address)(IMAGES), expected)
    assert not any(request.startswith("GET") for request in hub.requests)  # from the cache


def test_a_revision_is_respected(hub):
    mcr.load_model("hf:lab/encoder@v1.0")
    assert all("/resolve/v1.0/" in request for request in hub.requests)


def test_the_cache_is_used_offline(hub, monkeypatch):
    mcr.load_model("hf:lab/encoder")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    mcr.load_model("hf:lab/encoder")
    assert hub.requests == []
    with pytest.raises(UserError, match=r"small\.pth is not in the cache, and HF_HUB_OFFLINE is"):
        mcr.load_model("hf:lab/loose/weights/small.pth")


WRONG = {
    "hf:lab/nothing": "there is no such repository, or it is private",
    "hf:lab/encoder@v9": "no such revision",
    "hf:lab/loose": r"no config\.json in it; it holds broken\.pth, weights/small\.pth: name the "
    r"file, as in hf:lab/loose/broken\.pth",
    "hf:lab/loose/broken.pth": "damaged or cut off",
    "hf:lab/encoder/other.pth": r"no other\.pth in it; it holds model\.safetensors",
    "hf:lab/gated": "access is granted on request",
}


@pytest.mark.parametrize("address, message", WRONG.items())
def test_what_cannot_be_downloaded_is_reported_in_one_sentence(address, message, hub):
    hub.gated.add("lab/gated")
    with pytest.raises(UserError, match=message) as error:
        mcr.load_model(address)
    assert "\n" not in str(error.value) and address.split("/")[-1] in str(error.value)


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library retries for 20 s
    with pytest.raises(UserError, match="not in the cache, and the Hub cannot be reached"):
        mcr.load_model("hf:lab/encoder")


def test_a_published_encoder_is_found_in_the_cache(hub):
    with pytest.raises(UserError, match="nor in the Hugging Face cache"):
        mcr.load_model("mcr_resnet50")
    huggingface_hub.hf_hub_download(
        "GqJiang/robots-pretrain-robots", "mcr_resnet50.pth", endpoint=hub.url
    )
    with pytest.raises(UserError, match="it is not the published mcr_resnet50: its sha256 is"):
        mcr.load_model("mcr_resnet50")  # it is found, but has another hash


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'mcr\[hub\]'"):
        mcr.load_model("hf:lab/encoder")
    with pytest.raises(UserError, match="is neither in"):  # the catalogue works without it
        mcr.load_model("vc1_vitb")
