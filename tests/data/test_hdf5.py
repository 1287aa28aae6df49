"""robomimic's HDF5: what h5py wrote is what the reader gives, and what is damaged is named."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from mcr.data.hdf5 import Hdf5File, natural_order
from mcr.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 256, (150, 4, 6, 3), dtype=np.uint8)


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for name, length in (("demo_10", 2), ("demo_2", 150)):
            demo = file.create_group(f"data/{name}")
            demo.attrs["num_samples"] = length
            demo["actions"] = np.arange(2.0 * length).reshape(length, 2)
            demo["obs/front_image"] = FRAMES[:length]
            demo["obs/front_mask"] = FRAMES[:length, :, :, 0]
            demo["obs/depth"] = FRAMES[:length, :, :, :1]
            demo["obs/eef_pos"] = np.ones((length, 3))
            demo["next_obs/front_image"] = FRAMES[:length]
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift"})
        file["mask/train"] = np.array(["demo_10"], "S")
    return tmp_path / "demos.hdf5"


def test_everything_is_found(path):
    with Hdf5File(path) as file:
        assert file.episodes == ["demo_2", "demo_10"]
        assert file.env_args == {"env_name": "Lift"}
        assert file.cameras("demo_2") == {"front_image": 150}
        assert file.signals("demo_10") == ["eef_pos"]
        assert set(file.observations("demo_10")) == {
            *("front_image", "front_mask", "depth", "eef_pos")
        }
        assert file.length("demo_2") == 150 and file.length("demo_2", "obs/side_image") is None
        assert file.read("demo_10", "actions").tolist() == [[0, 1], [2, 3]]
        assert np.array_equal(file.read("demo_2", "obs/front_mask", 77), FRAMES[77, :, :, 0])
        assert np.array_equal(list(file.frames("demo_2", "front_image")), FRAMES)
        assert (file.subset("train"), file.subset("valid")) == (["demo_10"], None)


def test_a_copy_without_pictures(path, tmp_path):
    with Hdf5File(path) as file, h5py.File(tmp_path / "copy.hdf5", "w") as target:
        file.copy(target, without=["front_image"])
        demo = target["data/demo_10"]
        assert sorted(demo["obs"]) == ["depth", "eef_pos", "front_mask"]
        assert list(demo["next_obs"]) == [] and demo.attrs["num_samples"] == 2
        assert np.array_equal(demo["actions"], [[0, 1], [2, 3]])
        assert json.loads(target["data"].attrs["env_args"]) == {"env_name": "Lift"}
        assert target["mask/train"][()].tolist() == [b"demo_10"]


def test_an_empty_file_has_no_episodes(tmp_path):
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    with Hdf5File(tmp_path / "empty.hdf5") as file:
        assert file.episodes == [] and file.subset("train") is None


def test_damage_is_named(path):
    with h5py.File(path) as file:
        dataset = file["data/demo_10/obs/front_image"]
        begin, count = dataset.id.get_offset(), dataset.id.get_storage_size()
    path.write_bytes(path.read_bytes()[: begin + count // 2])
    with pytest.raises(UserError, match=r"demos\.hdf5: is no readable HDF5 file"):
        Hdf5File(path)
    path.write_text("<html>")
    with pytest.raises(UserError, match=r"demos\.hdf5: is no readable HDF5 file"):
        Hdf5File(path)


def test_a_damaged_chunk_is_named(tmp_path):
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        options = {"data": FRAMES, "chunks": (1, 4, 6, 3), "compression": "gzip"}
        file.create_dataset("data/demo_0/obs/front_image", **options)
    with h5py.File(path) as file:
        chunk = file["data/demo_0/obs/front_image"].id.get_chunk_info(100)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with Hdf5File(path) as file:
        frames = file.frames("demo_0", "front_image")
        assert np.array_equal(next(frames), FRAMES[0])
        with pytest.raises(UserError, match="demo_0, obs/front_image: cannot be read"):
            list(frames)


def test_natural_order():
    names = ["b10", "b2", "a", "b2c"]
    assert sorted(names, key=natural_order) == ["a", "b2", "b2c", "b10"]
