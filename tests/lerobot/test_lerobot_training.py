"""LeRobot's own trainer on what LeRobot wrote, with our encoders inside, without a network."""

import json
import re

import pytest
from lerobot.policies.factory import get_policy_class

import mcr.lerobot  # noqa: F401  registers
from mcr.models.encoder import Encoder
from mcr.models.fingerprint import weights_fingerprint
from mcr.models.loading import load_model

COMMON = (
    "lerobot-train --discover_packages_path=mcr.lerobot --dataset.repo_id=local/videos "
    "--dataset.video_backend=pyav --policy.device=cpu --policy.push_to_hub=false "
    "--num_workers=0 --log_freq=5 --seed=0"
)
SMALL = {
    "mcr_act": "--policy.chunk_size=8 --policy.n_action_steps=8 --policy.dim_model=64 "
    "--policy.n_heads=2 --policy.dim_feedforward=128 --policy.optimizer_lr=1e-3",
    "mcr_diffusion": "--policy.down_dims=[64,128] --policy.optimizer_lr=1e-3 "
    "--policy.scheduler_warmup_steps=1",
}


def losses(output: str) -> list[float]:
    """The mean loss of each five steps."""
    return [float(text) for text in re.findall(r"step:\d+ .*? loss:([\d.]+)", output)]


def load(kind: str, run):
    policy = get_policy_class(kind).from_pretrained(run / "checkpoints/last/pretrained_model")
    return policy, next(m for m in policy.modules() if isinstance(m, Encoder))


def test_act_learns_on_pictures_with_a_frozen_encoder(videos, encoder_path, tmp_path, command):
    options = f"--dataset.root={videos} --policy.type=mcr_act {SMALL['mcr_act']} --batch_size=4"
    begin = f"{COMMON} {options} --policy.vision_backbone={encoder_path} --output_dir=run"
    found = losses(command(f"{begin} --steps=20", tmp_path))
    assert len(found) == 4 and found[-1] < 0.5 * found[0]
    policy, encoder = load("mcr_act", tmp_path / "run")
    expected = weights_fingerprint(load_model(encoder_path))
    assert weights_fingerprint(encoder) == expected
    assert set(policy.config.image_features) == {
        "observation.images.front",
        "observation.images.wrist",
    }
    # The checkpoint is continued, by LeRobot's own means.
    config = tmp_path / "run/checkpoints/last/pretrained_model/train_config.json"
    resume = f"lerobot-train --discover_packages_path=mcr.lerobot --config_path={config}"
    more = losses(command(f"{resume} --resume=true --steps=25", tmp_path))
    assert len(more) == 1 and more[0] < 0.5 * found[0]
    assert weights_fingerprint(load("mcr_act", tmp_path / "run")[1]) == expected


def test_diffusion_learns_with_a_layer_at_its_own_rate(videos, encoder_path, tmp_path, command):
    command(
        f"{COMMON} --dataset.root={videos} --policy.type=mcr_diffusion {SMALL['mcr_diffusion']} "
        f"--policy.vision_backbone={encoder_path} --policy.freeze_backbone=false "
        "--policy.trainable_layers=[layer4] --policy.optimizer_lr_backbone=1e-4 "
        "--batch_size=2 --steps=3 --output_dir=run",
        tmp_path,
    )
    policy, encoder = load("mcr_diffusion", tmp_path / "run")
    start = load_model(encoder_path).state_dict()
    changed = {n for n, tensor in encoder.state_dict().items() if not tensor.equal(start[n])}
    assert changed and all(name.startswith("layer4.") for name in changed)
    state = tmp_path / "run/checkpoints/last/training_state/optimizer_param_groups.json"
    rates = [group["initial_lr"] for group in json.loads(state.read_text())]
    assert rates == [pytest.approx(1e-3), pytest.approx(1e-4)]


def test_diffusion_learns_on_cached_features(videos, features, encoder_path, tmp_path, command):
    output = command(
        f"{COMMON} --dataset.root={videos} --policy.type=mcr_diffusion {SMALL['mcr_diffusion']} "
        f"--policy.vision_backbone={encoder_path} --policy.cached_features={features} "
        "--policy.prediction_type=sample --batch_size=16 --steps=20 --output_dir=run",
        tmp_path,
    )
    found = losses(output)
    assert len(found) == 4 and found[-1] < 0.8 * found[0]
    _, encoder = load("mcr_diffusion", tmp_path / "run")
    assert weights_fingerprint(encoder) == weights_fingerprint(load_model(encoder_path))
