"""Files that hold no tensors are refused with one clear sentence, and nothing in them runs."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from mcr.errors import UserError
from mcr.models.loading import load_model


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "content")
    return file.getvalue()


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return torch.jit.script(nn.Linear(2, 2)).save_to_buffer()


WRONG_FILES = {
    "empty": (lambda good: b"", "it is empty"),
    "web page": (lambda good: b"\n<!DOCTYPE html><html>Not found</html>", "it is a web page"),
    "LFS pointer": (
        lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:2156\n",
        "Git LFS pointer, not the weights: run `git lfs pull`",
    ),
    "text": (lambda good: b"hello", "not a file of torch.save"),
    "cut off": (lambda good: good[: len(good) // 2], r"damaged or cut off at [\d,]+ bytes"),
    "cut off early": (lambda good: good[:10], "damaged or cut off at 10 bytes"),
    "empty zip": (lambda good: b"PK\x05\x06" + bytes(18), "not a file of torch.save"),
    "other zip": (
        lambda good: zipped("notes.txt"),
        r"zip archive with notes.txt in it.* unpack it",
    ),
    "NumPy's zip": (lambda good: zipped("a.npy", "b.npy"), "zip archive with a.npy, b.npy in it"),
    "TorchScript": (lambda good: scripted(), "it is a TorchScript program, not weights"),
    "compressed": (lambda good: gzip.compress(good[:100]), "not a file of torch.save"),
    "JSON": (lambda good: b'{"error": "not found"}', "not a file of torch.save"),
    "plain pickle": (lambda good: pickle.dumps({"a": 1}, protocol=4), "not a file of torch.save"),
    "old plain pickle": (lambda good: pickle.dumps({"a": 1}, protocol=2), "damaged or"),
    "old pickle, cut off": (lambda good: b"\x80\x02}q\x00", "damaged or"),
}


@pytest.mark.parametrize("make, message", WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_files(make, message, released, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(make(released.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        load_model(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


class Malice:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_never_runs(legacy, network, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "weights.pth"
    content = {"mcr": {"module.convnet.conv1.weight": Malice(marker)}, **network.state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"holds the Python object \w+\.mkdir, .* nothing ran"):
        load_model(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file is dangerous: its code runs here
    assert marker.exists()


def test_a_whole_pickled_module_is_refused(network, save):
    with pytest.raises(
        UserError, match=r"object torchvision\.models\.resnet\.ResNet, .*state_dict"
    ):
        load_model(save(network))
