"""Weights: damaged exports and checkpoints, and sound files of hostile content.

A file with checksums must give the encoder that was written, bit for bit, or be refused. A forged
one, whose checksums are right, may give another encoder, but none with NaN, infinity or negative
variances. Files of torch before 1.6, and safetensors without an export, have no checksums. Nobody
can tell a changed value in them, so they are held to the rule for forged ones.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from attacks import forged_weights
from attacks.campaign import Campaign, SilentLoss
from attacks.damages import damage_bytes, damage_json, replace_file, write
from mcr.models.encoder import Encoder
from mcr.models.layouts import CHECKPOINT_FORMAT, CONFIG_NAME, WEIGHTS_NAME
from mcr.models.loading import load_model
from mcr.models.preprocessing import Preprocessing
from mcr.models.tensor_files import read_tensors, sha256
from mcr.models.untrained import build_untrained
from mcr.release.export import export_encoder
from mcr.release.verify import verify

_BACKBONE = "resnet18"  # the smallest that has variances
_PREPROCESSING = Preprocessing.for_size(32)  # pictures that are quick to encode
_EXPORT = f"export/{WEIGHTS_NAME}"
_LARGEST_PICTURE = 256  # pixels per side of those that are encoded
_CASE = "case.json"


class Weights(Campaign):
    """An export, and files of torch.save in the layouts of several projects."""

    files: tuple[str, ...] = (
        _EXPORT,
        "checkpoint.pt",
        "snapshot.pth",
        "r3m.pth",
        "torchvision.pth",
    )
    have_checksums = True

    def sound(self, folder: Path) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._state = build_untrained(_BACKBONE, _PREPROCESSING).state_dict()
        for name, tensor in self._state.items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
        self._picture = torch.rand(3, 40, 48)
        self._expected: dict[str, tuple[Preprocessing, torch.Tensor]] = {}
        for name in self.files:
            self._write(folder, name)
            encoder = _load(folder / name)
            self._require_same(encoder, encoder.preprocessing)
            self._expected[name] = encoder.preprocessing, encoder(self._picture)

    def _write(self, folder: Path, name: str) -> None:
        if name == _EXPORT:
            self._write(folder, "checkpoint.pt")
            export_encoder(folder / "checkpoint.pt", folder / "export")
        elif name.endswith(".safetensors"):
            save_file(self._state, folder / name)
        else:
            self._save(self._content(name)[0], folder / name)

    def _save(self, content: Any, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=self.have_checksums)
        write(path, buffer.getvalue())

    def _content(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a file holds, and the dictionary of tensors in it."""
        inner: dict[str, Any] = {f"module.convnet.{key}": v for key, v in self._state.items()}
        plain: dict[str, Any] = dict(self._state)
        if name.startswith("snapshot"):
            return {"mcr": inner, "global_step": 10}, inner
        if name.startswith("r3m"):
            return {"r3m": inner, "alpha": 0.2}, inner
        if name.startswith("torchvision"):
            plain |= {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
            return plain, plain
        described = _PREPROCESSING.encoder_config(_BACKBONE)
        about = {"format": CHECKPOINT_FORMAT, "step": 7, "encoder_config": described}
        return {**about, "encoder": plain, "config": {"steps": 7}}, plain

    # ----------------------------------------------------------------------- damages

    def damage(self, folder: Path, draw: random.Random) -> str:
        name = draw.choice(self.files)
        path = folder / name
        kind = draw.random()
        is_forged = False
        if kind < 0.2:
            what = _flip_bit(path, draw)
        elif kind < 0.35:
            write(path, damage_bytes(path.read_bytes(), draw))
            what = "bytes"
        elif kind < 0.5:
            what = _damage_header(path, draw)
        elif kind < 0.53:
            what = replace_file(path, draw)
        elif kind < 0.65 and name == _EXPORT:
            what = _damage_config(path.with_name(CONFIG_NAME), draw)
        else:
            what, is_forged = self._forge(folder, name, draw), True
        about = {"file": name, "is_forged": is_forged or not self.have_checksums}
        write(folder / _CASE, json.dumps(about).encode())
        return f"{name}: {what}"

    def _forge(self, folder: Path, name: str, draw: random.Random) -> str:
        path = folder / name
        if path.suffix == ".safetensors":
            what = self._forge_safetensors(path, draw)
            if name == _EXPORT:
                _claim(path)
            return what
        kind = draw.random()
        if kind < 0.4:
            content, tensors = self._content(name)
            what = forged_weights.spoil(content, tensors, draw)
            self._save(content, path)
            return what
        if kind < 0.55:
            self._save(forged_weights.contents(draw), path)
            return "other contents"
        what, data = forged_weights.archive(path.read_bytes(), folder, draw)
        write(path, data)
        return what

    def _forge_safetensors(self, path: Path, draw: random.Random) -> str:
        if draw.random() < 0.5:
            what, data = forged_weights.header(path.read_bytes(), draw)
            write(path, data)
            return what
        tensors: dict[str, Any] = {name: tensor.clone() for name, tensor in self._state.items()}
        what = forged_weights.spoil({}, tensors, draw)
        if any(getattr(tensor, "nbytes", 0) > 2**28 for tensor in tensors.values()):
            raise ValueError("safetensors cannot hold expanded tensors; draw another damage")
        path.unlink()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return what

    # ----------------------------------------------------------------------- reading

    def read(self, folder: Path) -> None:
        case = json.loads((folder / _CASE).read_bytes())
        path = folder / case["file"]
        if zlib.crc32(folder.name.encode()) % 4 == 0:
            str(verify(path)) if case["file"] == _EXPORT else read_tensors(path)
        encoder = _load(path)
        preprocessing, features = self._expected[case["file"]]
        if not case["is_forged"]:
            self._require_same(encoder, preprocessing)
            if not torch.equal(encoder(self._picture), features):
                raise SilentLoss("the features are others")
            return
        for name, tensor in encoder.state_dict().items():
            if not tensor.isfinite().all() or (name.endswith("running_var") and tensor.min() < 0):
                raise SilentLoss(f"{name} holds values that no encoder has")
        if encoder.preprocessing.resize <= _LARGEST_PICTURE:
            encoder(self._picture)

    def _require_same(self, encoder: Encoder, preprocessing: Preprocessing) -> None:
        if (encoder.backbone, encoder.preprocessing) != (_BACKBONE, preprocessing):
            raise SilentLoss(f"{encoder.backbone} prepares pictures by {encoder.preprocessing}")
        found = encoder.state_dict()
        for name, tensor in self._state.items():
            if not torch.equal(found[name], tensor):
                raise SilentLoss(f"{name} is another one")


class UncheckedWeights(Weights):
    """Files without checksums: of torch before 1.6, and safetensors on their own."""

    files = ("checkpoint_old.pt", "snapshot_old.pth", "torchvision_old.pth", "bare.safetensors")
    have_checksums = False


def _load(path: Path) -> Encoder:
    """Load an encoder. Safetensors on their own do not say of which network they are."""
    if path.name == WEIGHTS_NAME and zlib.crc32(path.parts[-3].encode()) % 2:
        path = path.parent  # an export is loaded by its folder as well
    return load_model(path, backbone=_BACKBONE if path.name == "bare.safetensors" else None)


def _flip_bit(path: Path, draw: random.Random) -> str:
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    size = copy.stat().st_size
    place = draw.randrange(size)
    with copy.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0] ^ 1 << draw.randrange(8)
        file.seek(place)
        file.write(bytes([byte]))
    copy.replace(path)
    return f"one bit of byte {place} of {size}"


def _damage_header(path: Path, draw: random.Random) -> str:
    """Damage what says where tensors lie: the beginning, or in an archive also the end."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        size = 8 + struct.unpack("<Q", data[:8])[0]
        data = damage_bytes(data[:size], draw) + data[size:]
    elif draw.random() < 0.5:
        data = damage_bytes(data[:16_000], draw) + data[16_000:]
    else:
        data = data[:-16_000] + damage_bytes(data[-16_000:], draw)
    write(path, data)
    return "header"


def _damage_config(path: Path, draw: random.Random) -> str:
    if draw.random() < 0.3:
        write(path, damage_bytes(path.read_bytes(), draw))
        return "bytes of the config"
    return damage_json(path, draw)


def _claim(path: Path) -> None:
    """Write the checksum of forged weights into the export's config."""
    config = path.with_name(CONFIG_NAME)
    content = json.loads(config.read_text())
    content["mcr"]["weights_sha256"] = sha256(path)
    write(config, json.dumps(content).encode())
