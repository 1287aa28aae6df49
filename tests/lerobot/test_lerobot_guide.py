"""docs/lerobot.md: its six commands run in order, in one folder, as a reader would type them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class

import mcr.lerobot  # noqa: F401  registers
from mcr.models.encoder import Encoder
from mcr.models.fingerprint import weights_fingerprint
from mcr.models.loading import load_model

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "lerobot.md"


def blocks(language: str) -> list[str]:
    found = re.finditer(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    return [match[1] for match in found]


def lines(block: str) -> list[str]:
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def circle(tmp_path_factory, command) -> tuple[Path, list[str]]:
    """The folder after the six commands, and what each printed."""
    folder = tmp_path_factory.mktemp("circle")
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (commands,) = (lines(block) for block in blocks("bash") if "record_pusht" in block)
    assert len(commands) == 6
    return folder, [command(line, folder) for line in commands]


def test_recorded_data_are_lerobots_and_the_expert_moves_the_block(circle):
    folder, outputs = circle
    data = LeRobotDataset("local/pusht", root=folder / "pusht", video_backend="pyav")
    assert len(data) == 6 * 60
    covered = int(re.search(r"covers (\d+)% of its goal", outputs[0])[1])
    assert covered > 25  # 4% on average before the first step
    actions = np.stack([data[index]["action"] for index in range(0, 60, 10)])
    assert actions.min() >= 15 and actions.max() <= 497 and actions.std() > 10


def test_policy_learnt_from_the_features_of_the_pretrained_encoder(circle):
    folder, outputs = circle
    losses = [float(text) for text in re.findall(r"step:\d+ .*? loss:([\d.]+)", outputs[4])]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    policy = get_policy_class("mcr_act").from_pretrained(
        folder / "runs/act/checkpoints/last/pretrained_model"
    )
    (encoder,) = (module for module in policy.modules() if isinstance(module, Encoder))
    expected = weights_fingerprint(load_model(folder / "pusht_encoder"))
    assert weights_fingerprint(encoder) == expected


def test_policy_was_evaluated_in_the_simulator(circle):
    folder, _ = circle
    found = json.loads((folder / "runs/eval/eval_info.json").read_text())
    assert found["overall"]["n_episodes"] == 2
    assert len(list((folder / "runs/eval").rglob("*.mp4"))) == 2


def test_python_block_runs(encoder_path, tmp_path, monkeypatch):
    shutil.copytree(encoder_path, tmp_path / "my_encoder")
    monkeypatch.chdir(tmp_path)
    for source in blocks("python"):
        exec(compile(source, str(GUIDE), "exec"), {"__name__": "guide"})
    assert (tmp_path / "my_policy" / "model.safetensors").exists()


def test_versions_are_those_of_setup_and_of_the_code():
    from mcr.lerobot.compatibility import LEROBOT_VERSIONS

    text = (ROOT / "setup.py").read_text()
    pinned = re.search(r'"lerobot==([\d.]+)"', text)[1]
    assert pinned == LEROBOT_VERSIONS[0]
    assert f"LeRobot {pinned}" in GUIDE.read_text()
