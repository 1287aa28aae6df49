"""Damaged weights are refused in one sentence, or load as if they were whole."""

from __future__ import annotations

import os
import random
import shutil
import zipfile

import pytest
import torch

from mcr.errors import UserError
from mcr.models.loading import load_model
from mcr.models.tensor_files import read_content, read_tensors
from mcr.release.export import export_encoder


def rewritten(source, target, compression):
    """A copy of a zip archive, with its entries in another form."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return target


def small_file(path, legacy=False):
    tensors = {f"layer{i}.weight": torch.randn(20, 20) for i in range(4)}
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    return tensors


def damage(content, draw):
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 3])):
        place = draw.randrange(len(content))
        kind = draw.randrange(4)
        if kind == 0:
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[place : place + 8] = draw.randbytes(8)
        elif kind == 2:
            del content[place : place + draw.choice([1, 64, len(content)])]
        else:
            content[place:place] = draw.randbytes(draw.choice([1, 64]))
        if not content:
            break
    return bytes(content)


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_are_refused_or_hold_the_same(legacy, tmp_path):
    """Files of torch before 1.6 have no checksums: they must only not crash."""
    path, draw = tmp_path / "weights.pth", random.Random(0)
    expected = small_file(path, legacy)
    sound = path.read_bytes()
    refused = 0
    for _ in range(300):
        path.write_bytes(damage(sound, draw))
        try:
            found = read_tensors(path)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            continue
        if not legacy:
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert refused > 200 - 150 * legacy


def test_a_flipped_bit_in_tensor_data_is_refused(released, tmp_path):
    path = shutil.copy(released, tmp_path / "weights.pth")
    with open(path, "r+b") as file:
        for place in (10**6, 2 * 10**7, 4 * 10**7):
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
            file.flush()
            with pytest.raises(UserError, match="damaged or cut off"):
                load_model(path)
            file.seek(place)
            file.write(bytes([byte]))
            file.flush()
    load_model(path)


def test_a_changed_export_is_refused(small_checkpoint, tmp_path):
    folder = export_encoder(small_checkpoint, tmp_path / "encoder").path
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="was changed or damaged: its sha256 is .* copy the folder"):
        load_model(folder)


def test_preprocessing_that_contradicts_itself_is_refused(small_checkpoint, tmp_path):
    folder = export_encoder(small_checkpoint, tmp_path / "encoder").path
    sound = (folder / "config.json").read_text()
    for old, new, key in [('"resize": 73', '"resize": 77', "crop_pct"), ("0.229", "0.229", "")]:
        for which in (1, 2) if not key else (1,):
            parts = sound.split(old)
            changed = old.join(parts[:which]) + (new if key else "0.228") + old.join(parts[which:])
            (folder / "config.json").write_text(changed)
            with pytest.raises(UserError, match=f"pretrained_cfg differs .* in {key or 'std'};"):
                load_model(folder)


def test_an_expanded_tensor_is_refused_before_it_is_copied(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(1).expand(2**31)}, path)
    assert path.stat().st_size < 2000
    with pytest.raises(UserError, match="8,589,934,592 bytes, but there are only 4 bytes of data"):
        load_model(path)


def test_a_compressed_archive_is_refused(tmp_path):
    small_file(tmp_path / "sound.pth")
    path = rewritten(tmp_path / "sound.pth", tmp_path / "weights.pth", zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="its data are compressed, which torch.save does not do"):
        load_model(path)


def test_negative_variances_and_complex_numbers_are_refused(network, save):
    state = network.state_dict()
    with pytest.raises(UserError, match="variances bn1.running_var are negative"):
        load_model(save(state | {"bn1.running_var": -state["bn1.running_var"]}))
    with pytest.raises(UserError, match="bn1.num_batches_tracked holds complex numbers"):
        load_model(save(state | {"bn1.num_batches_tracked": torch.tensor(1j)}))


def test_statistics_that_were_saved_as_parameters_are_statistics(network, save):
    picture = torch.rand(1, 3, 64, 64)
    tensors = network.state_dict()
    expected = load_model(save(tensors))(picture)
    variance = torch.nn.Parameter(tensors["bn1.running_var"].clone())
    found = load_model(save({**tensors, "bn1.running_var": variance}))
    assert torch.equal(found(picture), expected)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "weights.pth")
    for path in (tmp_path / "weights.pth", "/dev/zero"):
        with pytest.raises(UserError, match="it is no regular file"):
            load_model(path)


def test_content_that_would_be_endless_as_text_is_not_shown(save):
    nested: list = []
    for _ in range(200):
        nested = [nested, nested]
    with pytest.raises(UserError, match=r"holds a list, not a dictionary"):
        load_model(save(nested))
    with pytest.raises(UserError, match=r"its format is <class 'list'>"):
        load_model(save({"encoder": {"a": torch.zeros(1)}, "format": nested}))
    assert len(read_content(save({"a": nested}))) == 1
