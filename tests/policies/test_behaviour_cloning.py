"""Behaviour cloning: it learns, a cache changes nothing, resumed runs equal unbroken ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import mcr
from mcr.errors import UserError
from mcr.features.extraction import FeatureConfig, extract_features
from mcr.models.untrained import write_untrained
from mcr.policies import behaviour_cloning
from mcr.policies.behaviour_cloning import Cloning, main, train
from mcr.policies.config import Config
from mcr.policies.demonstrations import DemonstrationConfig
from mcr.policies.network import PolicyConfig
from mcr.policies.observation_encoder import ObservationConfig
from mcr.policies.policy import load_policy

ROOT = Path(__file__).parents[2]
SIZE, LENGTH, DEMOS = 32, 5, 10
CAMERA = "front_image"


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """Compute features by torch. ONNX Runtime, which test_cache.py uses, takes 10 s to start."""
    monkeypatch.setattr("mcr.features.extraction.fastest_engine", lambda *_: "torch")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Demonstrations whose action is the brightness of the picture, an encoder, its features."""
    folder = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    with h5py.File(folder / "demos.hdf5", "w") as file:
        for number in range(DEMOS):
            demo = file.create_group(f"data/demo_{number}")
            brightness = rng.uniform(0.2, 1, LENGTH)
            pixels = rng.integers(100, 250, (LENGTH, SIZE, SIZE, 3))
            dimmed = (pixels * brightness[:, None, None, None]).astype(np.uint8)
            demo[f"obs/{CAMERA}"] = dimmed
            demo["obs/proprioception"] = rng.normal(size=(LENGTH, 2))
            demo["actions"] = np.stack([brightness, demo["obs/proprioception"][:, 0]], axis=1)
    write_untrained(folder / "encoder.pt", image_size=SIZE)
    quick = FeatureConfig(engine="torch", workers=1, cameras=(CAMERA,))
    extract_features(folder / "encoder.pt", folder / "demos.hdf5", folder / "features", quick)
    return folder


def config(desk, run_dir, **changes):
    """A small run. changes: options of any part, by their names without the part."""
    options = {
        "data": str(desk / "demos.hdf5"),
        "encoder": str(desk / "encoder.pt"),
        "feature_cache": str(desk / "features"),
        "run_dir": str(run_dir),
        "hidden": [32],
        "emb_dim": 16,
        "batch_size": 16,
        "epochs": 3,
    }
    options |= changes
    parts = {
        name: kind(**{f.name: options.pop(f.name) for f in fields(kind) if f.name in options})
        for name, kind in (
            ("demonstrations", DemonstrationConfig),
            ("observations", ObservationConfig),
            ("policy", PolicyConfig),
        )
    }
    return Config(**parts, **options)


def metrics(run_dir, split, name):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["split"] == split]


@pytest.mark.parametrize("head", ["mlp", "gmm"])
def test_it_learns_from_cached_features(desk, tmp_path, capsys, head):
    options = {"epochs": 25, "feature_norm": "batch_norm", "head": head, "learning_rate": 5e-3}
    path = train(config(desk, tmp_path, **options, save_every=25))
    with h5py.File(desk / "demos.hdf5") as file:
        variance = np.concatenate([demo["actions"] for demo in file["data"].values()]).var(axis=0)
    errors, losses = metrics(tmp_path, "val", "action_error"), metrics(tmp_path, "train", "loss")
    assert len(errors) == len(losses) == 25
    assert min(errors) < 0.5 * variance.mean()
    assert losses[-1] < losses[0] - 0.5  # actions are standardised: they begin near 1 or above
    assert list((tmp_path / "tensorboard").iterdir())
    printed = capsys.readouterr().out
    assert "9 demonstrations to train on, 1 held out" in printed
    assert (
        "/ 11,1" in printed and "parameters trainable" in printed and f"policy: {path}" in printed
    )


def test_features_or_pictures_give_the_same_policy(desk, tmp_path):
    for name, cached in (("cached", True), ("loop", False)):
        train(config(desk, tmp_path / name, cache_features=cached, chunk=2))
    for split in ("train", "val"):
        cached, loop = (metrics(tmp_path / name, split, "loss") for name in ("cached", "loop"))
        assert cached == pytest.approx(loop, rel=1e-3)


def encoder_tensors(policy):
    state = policy.observations.encoder.state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def changed_layers(before, after):
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def as_if_trained(untrained, path):
    """The same weights in a file that does not say that they are random."""
    content = torch.load(untrained)
    assert content.pop("untrained")
    torch.save(content, path)
    return path


def test_the_second_stage_unfreezes_layer_by_layer(desk, tmp_path):
    options = {"fine_tune_epochs": 3, "unfreeze_every": 2, "fine_tune_learning_rate": 1e-4}
    options["encoder"] = str(as_if_trained(desk / "encoder.pt", tmp_path / "trained.pt"))
    run = Cloning(config(desk, tmp_path / "run", **options, epochs=2), tmp_path)
    start, seen, original = encoder_tensors(run.policy), [], run._train_epoch

    def watched(bar):
        result = original(bar)
        layers = changed_layers(start, encoder_tensors(run.policy))
        optimizer = run.stage.optimizer
        seen.append((layers, optimizer, [g["lr"] for g in optimizer.param_groups]))
        return result

    run._train_epoch = watched
    run.loop()
    assert [layers for layers, _, _ in seen] == [
        set(),
        set(),
        {"layer4"},
        {"layer4"},
        {"layer4", "layer3"},
    ]
    optimizers = [optimizer for _, optimizer, _ in seen]
    assert optimizers[0] is optimizers[1] is not optimizers[2] is optimizers[4]
    assert seen[0][2] == [1e-3, 1e-4] and seen[4][2] == pytest.approx([1e-4, 1e-5])


TWO_STAGES = {
    "epochs": 2,
    "fine_tune_epochs": 2,
    "crops": 2,
    "feature_norm": "batch_norm",
    "save_every": 1,
}


@pytest.fixture(scope="module")
def whole(desk):
    return train(config(desk, desk / "whole", **TWO_STAGES)).parent


@pytest.mark.parametrize("killed_in", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(desk, whole, tmp_path, monkeypatch, killed_in):
    original = Cloning._train_epoch

    def killed(run, bar):
        if run.epoch == killed_in:
            raise KeyboardInterrupt
        return original(run, bar)

    with monkeypatch.context() as patch:
        patch.setattr(Cloning, "_train_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config(desk, tmp_path, **TWO_STAGES))
    resumed = load_policy(train(config(desk, tmp_path, **TWO_STAGES))).state_dict()
    for name, tensor in load_policy(whole / "policy.pt").state_dict().items():
        assert torch.equal(tensor, resumed[name]), name
    for split in ("train", "val"):
        runs = [metrics(folder, split, "loss") for folder in (whole, tmp_path)]
        assert runs[0] == runs[1] and len(runs[0]) == 4


def test_a_loaded_policy_acts_on_raw_pictures(desk, tmp_path):
    options = {"pooling": "spatial_softmax", "cache_features": False, "share_encoder": False}
    path = train(config(desk, tmp_path, **options, epochs=1))
    policy = load_policy(path)
    assert policy.observations.cameras == (CAMERA,) and policy.signals == ("proprioception",)
    pictures = {CAMERA: np.full((3, 40, 50, 3), 99, np.uint8)}  # another size than recorded
    actions = policy.act(pictures, np.zeros((3, 2)))
    assert actions.shape == (3, 2) and actions.dtype == np.float32
    alone = policy.act({CAMERA: pictures[CAMERA][:1]}, [[0, 0]])
    np.testing.assert_allclose(actions[0], alone[0], rtol=1e-5)
    assert not any(
        parameter.requires_grad for parameter in policy.observations.encoder.parameters()
    )


def test_an_encoder_learns_from_random_weights(desk, tmp_path, capsys):
    """It learns from the first epoch on. The policy has no proprioception."""
    scratch = config(
        desk,
        tmp_path / "run",
        encoder="",
        pretrained_encoder=False,
        image_size=SIZE,
        epochs=1,
        freeze_encoder=False,
        proprioception=False,
    )
    before = encoder_tensors(Cloning(scratch, tmp_path).policy)
    path = train(scratch)
    policy = load_policy(path)
    assert "encoder in the loop: it learns" in capsys.readouterr().out
    after = encoder_tensors(policy)
    assert {"conv1", "layer1", "layer4"} <= changed_layers(before, after)
    # live batch statistics, which the saved policy keeps, and the policy's own rate
    assert after["bn1.num_batches_tracked"] == 3
    assert not torch.equal(after["layer4.1.bn2.running_var"], torch.ones(512))
    saved = torch.load(path)
    assert [group["lr"] for group in saved["optimizer"]["param_groups"]] == [1e-3, 1e-3]
    assert policy.act({CAMERA: np.full((1, SIZE, SIZE, 3), 99, np.uint8)}).shape == (1, 2)


@pytest.mark.parametrize("changed", ["weights", "preprocessing"])
def test_an_encoder_without_a_file_is_cached_too(desk, tmp_path, changed):
    random = {"encoder": "", "pretrained_encoder": False, "rgb_model_name": "resnet18"}
    options = random if changed == "weights" else {"normalisation": "imagenet"}
    run_dir = tmp_path / "run"
    options |= {"image_size": 40, "feature_cache": "", "workers": 1, "epochs": 1}
    policy = load_policy(train(config(desk, run_dir, **options)))
    used = mcr.load_model(run_dir / "encoder.pt")  # what computed the features
    assert used.preprocessing.image_size == 40
    for name, tensor in used.state_dict().items():
        assert torch.equal(policy.observations.encoder.state_dict()[name], tensor)
    assert (run_dir / "features/features.npy").is_file()


def test_from_shards(shards, tmp_path):
    path = write_untrained(tmp_path / "encoder.pt", image_size=SIZE)
    options = Config(
        demonstrations=DemonstrationConfig(
            str(shards), cameras=["wrist_image_left"], val_fraction=0.3
        ),
        observations=ObservationConfig(encoder=str(path)),
        policy=PolicyConfig(epochs=1),
        run_dir=str(tmp_path / "run"),
        workers=1,
    )
    policy = load_policy(train(options))
    assert policy.signals == ("cartesian_position", "gripper_position", "joint_position")
    assert policy.network.action_dim == 10
    assert (tmp_path / "run/features/features.json").is_file()


def test_bad_input(desk, tmp_path):
    for changes, complaint in (
        ({"resume": "nevr"}, "resume='nevr' is unknown; did you mean 'never'"),
        (
            {"fine_tune_epochs": 1, "freeze_encoder": False},
            "leave out observations.freeze_encoder=False",
        ),
        ({"unfreeze_every": -1}, "unfreeze_every=-1 must be a whole number of at least 0"),
        ({"save_every": 0}, "save_every=0 must be a whole number of at least 1"),
        ({"pooling": "pool"}, "did you mean 'pooled'"),
        ({"cameras": ["front"]}, "no camera 'front'; did you mean 'front_image'"),
        ({"device": "cuda:77"}, "device=cuda:77 cannot be used"),
    ):
        with pytest.raises(UserError, match=complaint):
            train(config(desk, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_run_continues_only_with_its_own_config(desk, tmp_path):
    path = train(config(desk, tmp_path, epochs=1))
    before = path.read_bytes()
    train(config(desk, tmp_path, epochs=1, save_every=7))  # nothing to do
    for changes, complaint in (
        ({"learning_rate": 1e-4}, r"policy\.learning_rate: 0.001 -> 0.0001"),
        ({"resume": "never"}, "holds a run; choose another run_dir"),
    ):
        with pytest.raises(UserError, match=complaint):
            train(config(desk, tmp_path, epochs=1, **changes))
    assert path.read_bytes() == before
    path.write_bytes(before[:1000])
    with pytest.raises(UserError, match="policy.pt: unreadable policy"):
        train(config(desk, tmp_path, epochs=1))
    torch.save({"format": "else"}, path)
    with pytest.raises(UserError, match="holds no policy"):
        load_policy(path)


def test_a_run_continues_only_with_its_own_pictures(desk, tmp_path):
    """Repainting changes no signal, so nothing but the fingerprint tells."""
    data = tmp_path / "demos.hdf5"
    shutil.copy(desk / "demos.hdf5", data)
    options = {"data": str(data), "feature_cache": "", "workers": 1, "save_every": 1}
    train(config(desk, tmp_path / "run", epochs=1, **options))
    with h5py.File(data, "a") as file:
        file[f"data/demo_3/obs/{CAMERA}"][2] = 0
    with pytest.raises(UserError, match="run was begun with other demonstrations .fingerprint"):
        train(config(desk, tmp_path / "run", epochs=1, **options))


def test_random_weights_that_learnt_slowly_are_not_trained_further(desk, tmp_path):
    options = {"encoder": "", "pretrained_encoder": False, "image_size": SIZE, "save_every": 1}
    options |= {"freeze_encoder": False, "epochs": 2}
    run = Cloning(config(desk, tmp_path, **options), tmp_path)
    run.begin_stage().optimizer.param_groups[1]["lr"] *= 0.1  # as an earlier version did
    run.epoch = 1
    run.save()
    with pytest.raises(UserError, match="begun by an earlier version, in which random weights"):
        train(config(desk, tmp_path, **options))


def flat_policy(path):
    """Rewrite a policy in the first format: a flat config, other names of tensors."""
    content = torch.load(path)
    config = content["config"]
    for part in ("demonstrations", "observations", "policy"):
        config |= config.pop(part)
    del config["schema"], config["index"]  # which the first format did not have
    tensors = {}
    for name, tensor in content["policy"].items():
        name = name.replace("observations.low_dim.", "observations.low_dim_")
        name = name.replace("network.standardise.", "action_")
        if name.startswith("network.layers."):
            _, _, number, kind = name.split(".")
            name = f"body.{3 * int(number) + 1}.{kind}"
        tensors[name] = tensor
    torch.save(content | {"format": "mcr-bc-1", "config": config, "policy": tensors}, path)


def test_a_policy_of_the_first_format_acts_and_is_trained_further(desk, tmp_path):
    options = TWO_STAGES | {"hidden": [32, 16]}
    path = train(config(desk, tmp_path / "run", **options))
    pictures, signals = {CAMERA: np.full((3, 40, 50, 3), 99, np.uint8)}, np.ones((3, 2))
    expected = load_policy(path).act(pictures, signals)
    half = train(config(desk, tmp_path / "half", **options | {"fine_tune_epochs": 1}))
    flat_policy(path)
    assert "body.7.weight" in torch.load(path)["policy"]
    loaded = load_policy(path)
    np.testing.assert_array_equal(loaded.act(pictures, signals), expected)
    assert loaded.signals == ("proprioception",)

    content = torch.load(half)
    content["config"]["fine_tune_epochs"] = 2  # it was killed after its third epoch of four
    torch.save(content, half)
    flat_policy(half)
    resumed = load_policy(train(config(desk, tmp_path / "half", **options)))
    np.testing.assert_array_equal(resumed.act(pictures, signals), expected)
    with pytest.raises(UserError, match=r"policy\.chunk: 1 -> 2"):
        train(config(desk, tmp_path / "half", **options, chunk=2))


def test_features_of_another_encoder_are_refused(desk, tmp_path):
    other = write_untrained(tmp_path / "other.pt", image_size=SIZE, seed=1)
    with pytest.raises(UserError, match="another encoder"):
        train(config(desk, tmp_path / "run", encoder=str(other)))
    larger = write_untrained(tmp_path / "larger.pt", image_size=2 * SIZE)
    with pytest.raises(UserError, match="another encoder_config"):
        train(config(desk, tmp_path / "run", encoder=str(larger)))


# --------------------------------------------------------------------------- command line


def test_the_recipe_differs_from_the_defaults_only_in_the_norm():
    ConfigStore.instance().store(name="bc_config", node=Config)
    with initialize_config_dir(str(ROOT / "cfgs"), version_base="1.3"):
        overrides = ["policy.hidden=[8,8]", "demonstrations.cameras=[a]"]
        recipe = OmegaConf.to_object(compose("bc", overrides=overrides))
    assert recipe == Config(
        DemonstrationConfig(cameras=["a"]),
        ObservationConfig(feature_norm="batch_norm"),
        PolicyConfig(hidden=[8, 8]),
    )
    header = (ROOT / "cfgs/bc.yaml").read_text().split("defaults:")[0]
    assert all(f"#   {word}" in header for word in ("command", "cost", "expected"))


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        (
            "observations.freeze_enc=True",
            "unknown option 'observations.freeze_enc'; did you mean 'observations.freeze_encoder'?",
        ),
        ("encoder=x.pt", "encoder is called observations.encoder now: write observations.enc"),
        ("feature_norm=none", "feature_norm is called observations.feature_norm now"),
        ("head=gmm", "head is called policy.head now: write policy.head=..."),
        ("demonstrations.data=nowhere.hdf5", "nowhere.hdf5: no such file or folder; check the"),
    ],
)
def test_an_error_is_one_line(argument, complaint, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mcr bc", argument])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert error.startswith(f"error: {complaint}") and error.count("\n") == 1


def test_the_script(desk, tmp_path):
    shutil.copyfile(desk / "demos.hdf5", tmp_path / "demos.hdf5")
    sees = "pretrained_encoder=False rgb_model_name=resnet18 image_size=32 freeze_encoder=True"
    options = " ".join(f"observations.{option}" for option in sees.split())
    run = (
        f"demonstrations.data=demos.hdf5 run_dir=run policy.epochs=1 cache_features=False {options}"
    )
    script = str(ROOT / "scripts/train_bc.py")
    command = [sys.executable, script, *run.split()]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "policy: run/policy.pt" in result.stdout
    assert load_policy(tmp_path / "run/policy.pt").observations.out_dim == 256
    shown = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert shown == {"demos.hdf5", "demos.hdf5.index", "run"}


def test_nothing_is_left_in_the_temporary_folder(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(behaviour_cloning.tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    train(config(desk, tmp_path / "run", epochs=1, cache_features=False))
    assert list((tmp_path / "scratch").iterdir()) == []
