"""Files of tensors: opened without running anything in them, and refused with one clear sentence.

A weights file is untrusted. Pickles are read with `weights_only`, so that no code in them runs.
`models.layouts` says which of the tensors are the encoder's.
"""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from mcr.errors import UserError

logger = logging.getLogger(__name__)

# Prefixes that (Distributed)DataParallel and torch.compile put before every name; "" = neither.
WRAPPERS = ("", "module.", "_orig_mod.")
_COPY_AGAIN = "download or copy it again"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors under the names that it gives them.

    They are those of its dictionary, or of the dictionary under `state_dict` or `model` in it. For
    networks that are not in `BACKBONES`. Raises UserError as `layouts.read_weights` does.
    """
    try:
        content = read_content(path)
        for holder in ("state_dict", "model"):
            if isinstance(content, Mapping) and isinstance(content.get(holder), Mapping):
                content = content[holder]
        return clean(unwrap(require_tensors(content)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_content(path: Path) -> Any:
    """Return what a file of torch.save or safetensors holds.

    Raises UserError, without the path, if it is another kind of file, is damaged, or holds Python
    objects other than tensors and plain containers.
    """
    _refuse_other_files(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path.name} is damaged ({error}); {_COPY_AGAIN}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise UserError(f"it is damaged or not a file of torch.save; {_COPY_AGAIN}") from error
        raise UserError(
            f"it holds the Python object {found[1]}, not only tensors; loading that could run "
            "code, so it was refused and nothing ran: save the model's state_dict() instead"
        ) from error
    except (RuntimeError, EOFError, LookupError) as error:  # what torch raises for damaged files
        size = path.stat().st_size
        raise UserError(f"it is damaged or cut off at {size:,} bytes; {_COPY_AGAIN}") from error


def _refuse_other_files(path: Path) -> None:
    """Raise UserError for the files of other kinds that are often found under such a name."""
    if path.is_dir():
        raise UserError("it is a folder: give the weights file in it")
    with path.open("rb") as file:
        begin = file.read(64)
    if not begin:
        raise UserError(f"it is empty; {_COPY_AGAIN}")
    if begin.startswith(b"version https://git-lfs"):
        raise UserError("it is a Git LFS pointer, not the weights: run `git lfs pull`")
    if begin.lstrip().startswith(b"<") and b"\0" not in begin:
        raise UserError(
            "it is a web page, not the weights: the link led to a page; use the download link"
        )
    if path.suffix == ".safetensors":
        return
    # torch.save writes a zip file, or (before 1.6) pickles of protocol 2.
    if not begin.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise UserError("it is not a file of torch.save: give a .pth, .pt or .safetensors file")
    if zipfile.is_zipfile(path):
        _refuse_other_archives(path)


def _refuse_other_archives(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    files = {name.partition("/")[2] for name in names}
    if "constants.pkl" in files:
        raise UserError(
            "it is a TorchScript program, not weights: save the model's state_dict() instead"
        )
    if "data.pkl" not in files:
        raise UserError(
            f"it is a zip archive with {', '.join(names[:2]) or 'nothing'} in it, not a file of "
            "torch.save: unpack it and give the weights in it"
        )


def require_tensors(content: Any) -> Mapping[str, Tensor]:
    """Return `content` if it is a dictionary {name: dense tensor}; raise UserError otherwise."""

    def is_dense(name: Any, value: Any) -> bool:
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            return False
        return value.layout == torch.strided and not value.is_quantized

    is_mapping = isinstance(content, Mapping)
    if is_mapping and content and all(is_dense(*item) for item in content.items()):
        return content
    keys = ", ".join(str(key) for key in list(content)[:5]) if is_mapping else content
    raise UserError(f"it holds no weights in a layout known here (keys: {keys})")


def unwrap(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the prefixes that every name carries because the network was wrapped."""
    for wrapper in filter(None, WRAPPERS):
        if all(name.startswith(wrapper) for name in tensors):
            return unwrap({name.removeprefix(wrapper): t for name, t in tensors.items()})
    return tensors


def clean(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies, with all floating point as float32; other types are logged.

    Raises UserError if a tensor holds NaN or infinity.
    """
    others = {str(t.dtype) for t in tensors.values() if t.is_floating_point()} - {"torch.float32"}
    if others:
        logger.warning("weights are %s: converted to float32", ", ".join(sorted(others)))
    copies = {}
    for name, tensor in tensors.items():
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        # `contiguous()` would leave the strides of a channels_last 1 x 1 kernel as they are. They
        # choose the convolution's algorithm, and so the last digits of features.
        copies[name] = tensor.clone(memory_format=torch.contiguous_format)
        if not copies[name].sum().isfinite():  # three times faster than asking each value
            raise UserError(f"the tensor {name} holds NaN or infinity: take an earlier checkpoint")
    return copies
