"""Files of tensors: opened without running anything in them, and refused with one clear sentence.

A weights file is untrusted. Pickles are read with `weights_only`, so that no code in them runs.
Sizes are compared with the file's before memory is allocated, and checksums with the data, because
torch does neither. See docs/reliability.md. `models.layouts` says which of the tensors are the
encoder's.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from isal import isal_zlib
from safetensors.torch import load_file
from torch import Tensor

from mcr.errors import UserError

logger = logging.getLogger(__name__)

# Prefixes that (Distributed)DataParallel and torch.compile put before every name; "" = neither.
WRAPPERS = ("", "module.", "_orig_mod.")
_COPY_AGAIN = "download or copy it again"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a file in a zip archive; lengths of name and extra
_MOST_SHARED = 2  # a file's tensors may be this many times as large as its data: tied weights
_LONGEST_NAME = 200  # of a tensor


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
        raise named_error(path, error) from error


def named_error(path: Path, error: UserError) -> UserError:
    """Return the error with the file's name before it, in one line that is not overlong."""
    said = " ".join(str(error).split())
    return UserError(f"{path}: {said if len(said) < 1000 else said[:1000] + '...'}")


def read_content(path: Path) -> Any:
    """Return what a file of torch.save or safetensors holds.

    Raises UserError, without the path, if it is another kind of file, is damaged, or holds Python
    objects other than tensors and plain containers. A flipped bit is found in the files of
    torch.save since torch 1.6, which are zip archives with checksums. Older ones and safetensors
    have none.
    """
    try:
        _refuse_other_files(path)
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
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"it asks for more memory than there is; {_COPY_AGAIN}") from error
    except Exception as error:  # a damaged pickle makes torch and zipfile raise errors of any kind
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # of the disk, not of the file's content
        size = path.stat().st_size
        raise UserError(f"it is damaged or cut off at {size:,} bytes; {_COPY_AGAIN}") from error


def _refuse_other_files(path: Path) -> None:
    """Raise UserError for the files of other kinds that are often found under such a name."""
    if path.is_dir():
        raise UserError("it is a folder: give the weights file in it")
    if not path.is_file():
        what = "it is no regular file" if path.exists() else "there is no such file"
        raise UserError(f"{what}: give a weights file")
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
    if begin.startswith(b"PK"):
        _check_archive(path)


def _check_archive(path: Path) -> None:
    """Raise UserError unless the archive is one of torch.save and its checksums fit its data."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    _refuse_other_archives([entry.filename for entry in entries])
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(
            "its data are compressed, which torch.save does not do, and might unfold to any size: "
            "unpack the archive and zip it again with no compression (zip -0)"
        )
    is_repeated = len({entry.filename for entry in entries}) < len(entries)
    if is_repeated or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise zipfile.BadZipFile("two entries share a name or their data")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        for entry in entries:
            _require_checksum(data, entry)


def _require_checksum(data: memoryview, entry: zipfile.ZipInfo) -> None:
    """Raise BadZipFile unless the data of an entry that is not compressed have its CRC-32."""
    signature, name, extra = _LOCAL_HEADER.unpack_from(data, entry.header_offset)
    begin = entry.header_offset + _LOCAL_HEADER.size + name + extra
    with data[begin : begin + entry.file_size] as content:
        if signature != b"PK\x03\x04" or isal_zlib.crc32(content) != entry.CRC:
            raise zipfile.BadZipFile(f"{entry.filename} is not what its checksum says")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _refuse_other_archives(names: list[str]) -> None:
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
        if len(name) > _LONGEST_NAME or not name.isprintable() or value.device.type != "cpu":
            return False
        return value.layout == torch.strided and not (value.is_quantized or value.is_nested)

    is_mapping = isinstance(content, Mapping)
    if is_mapping and content and all(is_dense(*item) for item in content.items()):
        return content
    texts = [key for key in content if isinstance(key, str)] if is_mapping else []
    kind = f"keys: {', '.join(texts[:5])}" if texts else type(content).__name__
    raise UserError(f"it holds no weights in a layout known here ({kind})")


def unwrap(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the prefixes that every name carries because the network was wrapped."""
    for wrapper in filter(None, WRAPPERS):
        if all(name.startswith(wrapper) for name in tensors):
            return unwrap({name.removeprefix(wrapper): t for name, t in tensors.items()})
    return tensors


def clean(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies, with all floating point as float32; other types are logged.

    Raises UserError if a tensor holds NaN or infinity, if a variance is negative, or if tensors
    are larger than the data that they were read from, as expanded ones are.
    """
    _require_backed(tensors)
    others = {str(t.dtype) for t in tensors.values() if t.is_floating_point()} - {"torch.float32"}
    if others:
        logger.warning("weights are %s: converted to float32", ", ".join(sorted(others)))
    copies = {}
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise UserError(f"the tensor {name} holds complex numbers, as no encoder does")
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        # `contiguous()` would leave the strides of a channels_last 1 x 1 kernel as they are. They
        # choose the convolution's algorithm, and so the last digits of features.
        # Detached, because batch norm refuses statistics that were saved as parameters.
        copies[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        if not copies[name].sum().isfinite():  # three times faster than asking each value
            raise UserError(f"the tensor {name} holds NaN or infinity: take an earlier checkpoint")
        if name.endswith("running_var") and (copies[name] < 0).any():
            raise UserError(f"the variances {name} are negative: {_COPY_AGAIN}")
    return copies


def _require_backed(tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError if copies of the tensors would take much more memory than their data."""
    storages = [tensor.untyped_storage() for tensor in tensors.values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if needed > _MOST_SHARED * held:
        raise UserError(
            f"its tensors have {needed:,} bytes, but there are only {held:,} bytes of data: they "
            "were expanded; save each tensor's clone()"
        )
