"""Feature cache: it holds the encoder's features, is complete or absent, and is never stale."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import mcr
from mcr.data.index import open_index
from mcr.data.pictures import encode_png
from mcr.errors import UserError
from mcr.features import extraction
from mcr.features.cache import FeatureCache, from_stored, to_stored
from mcr.features.extraction import FeatureConfig, extract_features
from mcr.features.recordings import open_recordings
from tests.waiting import PATIENCE_S, wait_for

REPOSITORY = Path(__file__).parents[2]
LENGTHS = {"a": 3, "b": 5, "c": 2}
HERE = FeatureConfig(engine="torch", workers=1)  # in this process: no start-up


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """`weights(seed)`: a checkpoint of a ResNet-18 at 32 pixels with random variances."""
    folder = tmp_path_factory.mktemp("weights")

    def write(seed: int = 0) -> Path:
        path = folder / f"{seed}.pt"
        torch.manual_seed(seed)
        network = torchvision.models.resnet18()
        network.fc = torch.nn.Identity()
        for name, tensor in network.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
        sees = {"backbone": "resnet18", "image_size": 32, "resize": 36, "interpolation": "bilinear"}
        sees |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        content = {"format": "mcr-checkpoint-1", "step": 1, "encoder_config": sees}
        torch.save(content | {"encoder": network.state_dict()}, path)
        return path

    return write


@pytest.fixture
def data(tmp_path):
    """Three folders of pictures. Those of one folder have another size."""
    return write_pictures(tmp_path / "data", LENGTHS)


def write_pictures(root: Path, lengths: dict[str, int], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name, length in lengths.items():
        (root / name).mkdir(parents=True)
        for step in range(length):
            pixels = rng.integers(0, 256, (40 if name == "b" else 48, 64, 3), dtype=np.uint8)
            (root / name / f"{step}.png").write_bytes(encode_png(pixels))
    return root


def expected_features(weights, data, output="pooled"):
    """Features by the encoder itself, frame by frame: {episode: [T, ...]}."""
    encoder, recordings = mcr.load_model(weights), open_recordings(data)
    return {
        name: np.stack(
            [encoder.features(f, output).numpy() for f in recordings.frames(k, "picture")]
        )
        for k, name in enumerate(recordings.names)
    }


def assert_equal(cache, expected, tolerance=1e-4):
    for name, features in expected.items():
        error = np.abs(cache.features(name, "picture") - features).max()
        assert error <= tolerance * np.abs(features).max()


@pytest.mark.parametrize("output", ["pooled", "spatial"])
def test_features_are_the_encoders(weights, data, tmp_path, output):
    config = FeatureConfig(output=output, engine="torch", workers=1, batch_size=2)
    cache = extract_features(weights(), data, tmp_path / "cache", config)
    expected = expected_features(weights(), data, output)
    assert min(features.std(0).max() for features in expected.values()) > 0.1
    assert_equal(cache, expected)
    assert cache.array.shape[:2] == (10, 1)
    files = sorted(path.name for path in cache.path.iterdir())
    assert files == ["episodes.csv", "features.json", "features.npy"]
    assert not (tmp_path / "cache.partial").exists()


def test_processes_and_cameras(weights, shards, tmp_path):
    """Two workers with ONNX Runtime compute two of three cameras of RLDS shards."""
    cameras = ("wrist_image_left", "exterior_image_1_left")
    config = FeatureConfig(cameras=cameras, workers=2, engine="onnx")
    open_index(shards, workers=1)
    cache = extract_features(weights(), shards, tmp_path / "cache", config)
    recordings, encoder = open_recordings(shards), mcr.load_model(weights())
    assert cache.cameras == cameras
    assert cache.array.shape == (sum(recordings.lengths), 2, 512)
    for episode in (0, 3):
        for camera in cameras:
            frame = list(recordings.frames(episode, camera))[7]
            found = cache.features(episode, camera, 7)
            assert np.allclose(found, encoder(frame).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("fp16", 1e-3), ("bf16", 5e-3)])
def test_each_dtype_is_read_as_float32(weights, data, tmp_path, dtype, tolerance):
    config = FeatureConfig(dtype=dtype, engine="torch", workers=1)
    cache = extract_features(weights(), data, tmp_path / "cache", config)
    found = cache.features("b", "picture")
    assert found.dtype == np.float32
    assert_equal(cache, expected_features(weights(), data), tolerance)


def test_bfloat16_is_stored_as_bit_patterns():
    values = torch.tensor([[0.0, -1.0, 3.140625, 1e30, -1e-30, 65504.0]])
    stored = to_stored(values, "bf16")
    assert stored.dtype == np.uint16
    expected = values.bfloat16().float().numpy()
    assert np.array_equal(from_stored(stored, "bf16"), expected)


def test_computation_in_bfloat16_is_close_and_needs_its_own_cache(weights, data, tmp_path):
    config = FeatureConfig(precision="bf16", workers=1)
    cache = extract_features(weights(), data, tmp_path / "cache", config)
    assert_equal(cache, expected_features(weights(), data), 0.05)
    with pytest.raises(UserError, match=r"another precision \(bf16, not fp32\)"):
        extract_features(weights(), data, tmp_path / "cache", HERE)


def test_steps_are_chosen_as_numpy_chooses_them(weights, data, tmp_path):
    cache = extract_features(weights(), data, tmp_path / "cache", HERE)
    everything = cache.features("b", "picture")
    assert everything.shape == (5, 512)
    assert np.array_equal(cache.features("b", "picture", slice(1, 4)), everything[1:4])
    assert np.array_equal(cache.features("b", "picture", [4, 0]), everything[[4, 0]])
    assert np.array_equal(cache.features("b", "picture", -1), everything[-1])
    assert np.array_equal(cache.features(1, "picture", 2), everything[2])
    assert np.array_equal(
        pickle.loads(pickle.dumps(cache)).features(1, "picture", 2), everything[2]
    )
    with pytest.raises(IndexError):
        cache.features("b", "picture", 5)
    with pytest.raises(UserError, match="no episode 'bb'; did you mean 'b'"):
        cache.features("bb", "picture")
    with pytest.raises(UserError, match="did you mean 'picture'"):
        cache.features("b", "pictures")


def test_a_stale_cache_is_refused(weights, data, tmp_path):
    out = tmp_path / "cache"
    extract_features(weights(), data, out, HERE)
    encoder, fingerprint = mcr.load_model(weights()), open_recordings(data).fingerprint
    FeatureCache(out, encoder, fingerprint)
    other = mcr.load_model(weights(1))
    with pytest.raises(
        UserError, match=r"is of another encoder \(\w{12}\.\.\., not \w{12}\.\.\.\)"
    ):
        FeatureCache(out, other)
    with pytest.raises(UserError, match=r"is of other data .*; extract the features again"):
        FeatureCache(out, encoder, "0" * 64)
    with pytest.raises(UserError, match="another encoder .*; choose another folder or delete it"):
        extract_features(weights(1), data, out, HERE)
    (data / "a" / "0.png").write_bytes((data / "a" / "1.png").read_bytes())
    with pytest.raises(UserError, match="is of other data"):
        extract_features(weights(), data, out, HERE)
    spatial = FeatureConfig(output="spatial", engine="torch", workers=1)
    with pytest.raises(UserError, match=r"another output \(pooled, not spatial\)"):
        extract_features(weights(), data, out, spatial)


def test_the_same_weights_in_another_file_use_the_same_cache(weights, data, tmp_path, monkeypatch):
    extract_features(weights(), data, tmp_path / "cache", HERE)
    exported = mcr.export_encoder(weights(), tmp_path / "encoder").path
    monkeypatch.setattr(extraction, "run", None)  # nothing is computed again
    assert len(extract_features(exported, data, tmp_path / "cache", HERE).episodes) == 3


def test_an_unreadable_frame_stops_extraction_and_finished_episodes_are_kept(
    weights, data, tmp_path
):
    frame = data / "b" / "2.png"
    whole, about = frame.read_bytes(), frame.stat()

    def write(content):  # a disk that fails changes neither size nor time
        frame.write_bytes(content)
        os.utime(frame, ns=(about.st_atime_ns, about.st_mtime_ns))

    open_recordings(data)
    write(whole[:100].ljust(len(whole), b"\0"))
    with pytest.raises(UserError, match=r"b/2\.png: "):
        extract_features(weights(), data, tmp_path / "cache", HERE)
    assert (tmp_path / "cache.partial" / "done.txt").read_text() == "0\n"
    with pytest.raises(UserError, match="is no feature cache; it was begun, type the same command"):
        FeatureCache(tmp_path / "cache")
    write(whole)
    assert_equal(
        extract_features(weights(), data, tmp_path / "cache", HERE),
        expected_features(weights(), data),
    )


def test_features_that_overflow_are_refused(weights, data, tmp_path):
    content = torch.load(weights(7))
    content["encoder"]["layer4.1.bn2.weight"] *= 1e7
    torch.save(content, tmp_path / "large.pt")
    config = FeatureConfig(dtype="fp16", engine="torch", workers=1)
    with pytest.raises(UserError, match="not finite in fp16: too large for it"):
        extract_features(tmp_path / "large.pt", data, tmp_path / "cache", config)


def test_a_damaged_description_is_refused(weights, data, tmp_path):
    cache = extract_features(weights(), data, tmp_path / "cache", HERE)
    description = cache.path / "features.json"
    description.write_text(json.dumps(cache.description | {"format": "mcr-features-0"}))
    with pytest.raises(UserError, match="has the format 'mcr-features-0'"):
        FeatureCache(cache.path)
    description.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        FeatureCache(cache.path)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"output": "tokens"}, "output='tokens' is unknown"),
        ({"dtype": "fp8"}, "dtype='fp8' is unknown"),
        ({"engine": "onnx", "device": "cuda"}, "runs on the CPU in fp32"),
        ({"engine": "onnx", "precision": "bf16"}, "runs on the CPU in fp32"),
        ({"batch_size": -1}, "batch_size=-1 must be a whole number of at least 0"),
    ],
)
def test_impossible_configs_are_refused(wrong, complaint):
    with pytest.raises(UserError, match=complaint):
        FeatureConfig(**wrong)


def test_a_killed_extraction_is_continued(weights, tmp_path):
    """The script runs two processes and is killed; the next run computes only what is missing."""
    data = write_pictures(tmp_path / "data", {f"episode_{k}": 60 for k in range(12)})
    out, journal = tmp_path / "cache", tmp_path / "cache.partial" / "done.txt"
    command = [sys.executable, "scripts/extract_features.py", weights(), data, out]
    command = [*map(str, command), "--workers", "2", "--engine", "torch"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        ["nice", "-n", "5", *command],  # the test that kills it is served first
        cwd=REPOSITORY,
        env=environment,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: journal.is_file() and journal.read_text().count("\n") >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)  # until its workers are gone, too
    done = {int(line) for line in journal.read_text().splitlines()}
    assert 2 <= len(done) < 12 and not out.exists()
    array = np.load(journal.with_name("features.npy"))
    array[[60 * episode for episode in done]] += 1000  # whoever computes these again is found out
    np.save(journal.with_name("features.npy"), array)
    with journal.open("a") as file:
        file.write("1")  # of "11": a line that was cut off counts for nothing
    cache = extract_features(weights(), data, out, HERE)
    expected = expected_features(weights(), data)
    for episode, (name, features) in enumerate(expected.items()):
        found = cache.features(name, "picture")
        assert np.allclose(found[1:], features[1:], rtol=1e-3, atol=1e-4)
        assert np.allclose(found[0] - features[0], 1000 * (episode in done), atol=1e-2)
