"""Sources: what `load_model` is given -> the weights that it names.

    path                                   a file or folder, also below a folder of MCR_WEIGHTS_PATH
    mcr_resnet50, vc1_vitb, ...            a name of the catalogue
    torchvision:resnet50[.IMAGENET1K_V1]   torchvision's, from its cache or downloaded
    timm:NAME[.TAG]                        timm's, from its cache or downloaded
    hf:org/name[/file][@revision]          a repository on the Hugging Face Hub

A path that exists takes precedence over a name. `models.layouts` reads the files.
"""

from __future__ import annotations

import logging
import urllib.error
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision

from mcr.errors import UserError, import_extra, nearest, require_choice
from mcr.models import catalogue, hub
from mcr.models.backbones import BACKBONES, TIMM
from mcr.models.layouts import Weights, read_weights
from mcr.models.preprocessing import Preprocessing
from mcr.models.tensor_files import sha256

logger = logging.getLogger(__name__)

TORCHVISION = "torchvision:"
_CLASSIFIERS = [name for name in torchvision.models.list_models() if name in BACKBONES]


def read_source(source: str | Path, backbone: str | None = None) -> Weights:
    """Read the weights that `source` names.

    backbone: the network that a file is for, if its tensors cannot tell, or "timm:NAME"
    Raises UserError if there is no such source, or if it cannot be read as this network.
    """
    name = str(source)
    if backbone is not None and not backbone.startswith(TIMM):
        require_choice("backbone", backbone, BACKBONES)
    if not Path(name).expanduser().exists():
        if name.startswith((TIMM, TORCHVISION)) or name in catalogue.MODELS:
            return _read_name(name, backbone)
        if name.startswith(hub.SCHEME):
            return _read_path(hub.download(name), backbone)
    return _read_path(_search(name), backbone)


def _read_name(name: str, backbone: str | None) -> Weights:
    if name.startswith(TIMM):
        weights = import_timm_encoder().read_pretrained(name)
    elif name.startswith(TORCHVISION):
        weights = _read_torchvision(name)
    else:
        model = catalogue.MODELS[name]
        if model.backbone.startswith(TIMM):
            weights = import_timm_encoder().read_file(catalogue.find(model), model.backbone)
        else:
            weights = read_weights(catalogue.find(model), model.backbone)
        if model.preprocessing is not None:
            weights = replace(weights, preprocessing=model.preprocessing)
    if backbone is not None and not _is_same(backbone, weights.backbone):
        raise UserError(f"{name} is a {weights.backbone}, not the {backbone} that was asked for")
    return weights


def _is_same(asked: str, found: str) -> bool:
    """Whether these are one network; for timm's, whatever weights the name has after the dot."""
    return asked == found or asked == found.partition(".")[0]


def _search(name: str) -> Path:
    """Return the path `name`, or the first such path below the folders of MCR_WEIGHTS_PATH."""
    path = Path(name).expanduser()
    places = [path, *(folder / path for folder in catalogue.weight_folders())]
    for place in places:
        if place.exists():
            return place
    looked = f", neither here nor in {catalogue.FOLDERS}" if len(places) > 1 else ""
    is_name = not path.suffix and path.name == name
    raise UserError(
        f"{name}: no such file{looked}; check the path to the weights"
        + (f", or the name of the encoder{nearest(name, catalogue.MODELS)}" if is_name else "")
    )


def _read_path(path: Path, backbone: str | None) -> Weights:
    if backbone is not None and backbone.startswith(TIMM):
        return import_timm_encoder().read_file(path, backbone)
    weights = read_weights(path, backbone)
    if weights.layout != "torchvision classifier":
        return weights
    if recorded := _recorded(path):
        return replace(weights, preprocessing=recorded)
    logger.warning(
        "%s: is none of the classifiers that torchvision publishes, so nothing says how its "
        "pictures must be prepared; they are resized to %d and cropped to %d, as is usual. If "
        "that is wrong (232 for weights that were saved again from torchvision's V2), set "
        "encoder.preprocessing",
        path,
        weights.preprocessing.resize,
        weights.preprocessing.image_size,
    )
    return weights


def import_timm_encoder() -> Any:
    """Return the module `models.timm_encoder`; raise UserError if timm is not installed."""
    import_extra("timm", "timm")
    from mcr.models import timm_encoder

    return timm_encoder


# --------------------------------------------------------------------------- torchvision


def _read_torchvision(name: str) -> Weights:
    """Read a classifier of torchvision; its last layer is left out."""
    backbone, _, tag = name.removeprefix(TORCHVISION).partition(".")
    kinds = torchvision.models.get_model_weights(require_choice("network", backbone, _CLASSIFIERS))
    kind = kinds[require_choice("weights", tag, kinds.__members__)] if tag else kinds.DEFAULT
    path = _torchvision_file(kind.url)
    return replace(read_weights(path, backbone), preprocessing=_preprocessing(kind))


def _torchvision_file(url: str) -> Path:
    """Find the file in the folders of MCR_WEIGHTS_PATH or torch.hub's cache, or download it there.

    Its SHA-256 must begin as the end of its name says, as in resnet50-11ad3fa6.pth.
    """
    name = url.rpartition("/")[2]
    begin = _hash_in(url)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    places = [folder / name for folder in (*catalogue.weight_folders(), cache)]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(cache / name), hash_prefix=begin)
        except (urllib.error.URLError, RuntimeError) as error:  # no network, or a wrong hash
            raise UserError(
                f"{url}: not downloaded ({error}); put the file into {cache} or into a folder of "
                f"{catalogue.FOLDERS}"
            ) from error
        return cache / name
    if not sha256(path).startswith(begin):
        raise UserError(f"{path}: its sha256 does not begin with {begin}: download it again")
    return path


def _recorded(path: Path) -> Preprocessing | None:
    """The preprocessing that torchvision records for its weights with this content.

    The name of the file does not count. The addresses of torchvision's weights end in the first
    digits of their SHA-256.
    """
    digest = catalogue.sha256(path)
    for name in _CLASSIFIERS:
        for kind in torchvision.models.get_model_weights(name):
            if digest.startswith(_hash_in(kind.url)):
                return _preprocessing(kind)
    return None


def _hash_in(url: str) -> str:
    """The first digits of the SHA-256 of what lies at `url`, as in .../resnet50-11ad3fa6.pth."""
    return Path(url).stem.rpartition("-")[2]


def _preprocessing(kind: Any) -> Preprocessing:
    recorded = kind.transforms()
    return Preprocessing(
        image_size=recorded.crop_size[0],
        resize=recorded.resize_size[0],
        mean=tuple(recorded.mean),
        std=tuple(recorded.std),
        interpolation=recorded.interpolation.value,
    )
