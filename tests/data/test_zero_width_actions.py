"""Actions without a number in them: one sentence, where a loss over nothing would be NaN."""

import pickle

import numpy as np
import pytest

import mcr
from mcr.data.loader import DataConfig
from mcr.errors import UserError
from mcr.policies.demonstrations import DemonstrationConfig, open_demonstrations
from mcr.training.config import Config
from mcr.training.train import train

WIDTH = r"action holds no numbers \(its width is 0\)"


@pytest.fixture
def data(tmp_path):
    frames = [np.zeros((8, 8, 3), np.uint8)] * 30
    signals = np.zeros((30, 2), np.float32)
    mcr.write_episode(tmp_path / "data", "one", {"front": frames}, signals, signals)
    path = tmp_path / "data" / "one" / "other_data.pkl"
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(content | {"action": [np.zeros(0, np.float32)] * 30}))
    return str(tmp_path / "data")


def test_in_training(data, tmp_path):
    config = Config(run_dir=str(tmp_path / "run"), device="cpu", data=DataConfig(root=data))
    with pytest.raises(UserError, match=rf"{WIDTH}.* action_prediction needs one"):
        train(config)


def test_in_behaviour_cloning(data):
    with pytest.raises(UserError, match=WIDTH):
        open_demonstrations(DemonstrationConfig(data))
