"""Cached features take the place of pictures in a LeRobotDataset."""

import shutil
from pathlib import Path

import pyarrow
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from pyarrow import parquet
from torch.utils.data import DataLoader

from mcr.errors import UserError
from mcr.lerobot import CachedFeatures, MCRACTConfig, make_dataset
from mcr.models.loading import load_model
from mcr.models.untrained import write_untrained

FRONT, WRIST = "observation.images.front", "observation.images.wrist"


@pytest.fixture(scope="module")
def pictures(videos) -> LeRobotDataset:
    return LeRobotDataset("local/videos", root=videos, video_backend="pyav")


@pytest.fixture(scope="module")
def cached(videos, features) -> CachedFeatures:
    return CachedFeatures("local/videos", features=features, root=videos)


def test_items_are_those_of_lerobot_with_features_for_pictures(pictures, cached, encoder_path):
    encoder = load_model(encoder_path)
    assert len(cached) == len(pictures) == 202
    for index in (0, 39, 40, 51, 201):  # the first and last steps of episodes
        theirs, ours = pictures[index], cached[index]
        assert ours.keys() == theirs.keys()
        assert ours["task"] == theirs["task"]
        for key in theirs.keys() - {FRONT, WRIST, "task"}:
            assert torch.equal(ours[key], theirs[key]), key
        for key in (FRONT, WRIST):
            expected = encoder.features(theirs[key], "spatial")
            assert ours[key].shape == expected.shape
            # The cache reads frames from the index's pack, which are JPEG.
            assert (ours[key] - expected).norm() < 0.1 * expected.norm()


def test_steps_around_a_step_stay_within_the_episode(videos, features, cached):
    around = {key: [-1 / 15, 0.0] for key in (FRONT, "observation.state")}
    both = CachedFeatures("v", features=features, root=videos, delta_timestamps=around)
    first, later = both[40], both[45]
    assert first[FRONT].shape == (2, *cached[40][FRONT].shape)
    assert torch.equal(first[FRONT][0], cached[40][FRONT])  # not step 39 of the episode before
    assert first[f"{FRONT}_is_pad"].tolist() == [True, False]
    assert torch.equal(later[FRONT], torch.stack([cached[44][FRONT], cached[45][FRONT]]))
    assert torch.equal(later[WRIST], cached[45][WRIST])
    assert not torch.equal(later[FRONT][0], later[FRONT][1])


def test_some_episodes_and_workers(videos, features, cached):
    some = CachedFeatures("v", features=features, root=videos, episodes=[1, 3])
    assert len(some) == 12 + 31
    assert torch.equal(some[12][FRONT], cached[102][FRONT])  # 40 + 12 + 50
    (batch,) = DataLoader(some, batch_size=43, num_workers=1)
    assert torch.equal(batch[WRIST][12], cached[102][WRIST])


def test_images_in_parquet(encoder_path, tmp_path, make_features):
    source = Path(__file__).parents[1] / "data" / "reference" / "lerobot" / "lerobot_v3_image"
    data = shutil.copytree(source, tmp_path / "images")
    folder = make_features(encoder_path, data, tmp_path / "features")
    cached = CachedFeatures("v", features=folder, root=data)
    theirs = LeRobotDataset("v", root=data)[5][WRIST]
    expected = load_model(encoder_path).features(theirs, "spatial")
    assert (cached[5][WRIST] - expected).norm() < 0.1 * expected.norm()


class Settings:
    """What `make_dataset` reads of LeRobot's TrainPipelineConfig."""

    def __init__(self, videos, policy, **changes):
        from lerobot.configs.default import DatasetConfig

        self.dataset = DatasetConfig("local/videos", root=str(videos), video_backend="pyav")
        self.policy, self.tolerance_s = policy, 1e-4
        for name, value in changes.items():
            setattr(self.dataset, name, value)


def test_trainer_gets_features_only_if_the_policy_asks(videos, features, encoder_path):
    from lerobot.scripts import lerobot_train

    assert lerobot_train.make_dataset is make_dataset
    plain = MCRACTConfig(vision_backbone=encoder_path, device="cpu")
    asks = MCRACTConfig(
        vision_backbone=encoder_path,
        device="cpu",
        cached_features=str(features),
        chunk_size=4,
        n_action_steps=4,
    )
    assert type(make_dataset(Settings(videos, plain))) is LeRobotDataset
    dataset = make_dataset(Settings(videos, asks))
    assert type(dataset) is CachedFeatures
    assert dataset[3]["action"].shape == (4, 10)
    settings = Settings(videos, asks)
    settings.dataset.image_transforms.enable = True
    with pytest.raises(UserError, match="features are not pictures"):
        make_dataset(settings)


def test_what_does_not_fit_is_refused(videos, features, encoder_path, tmp_path, make_features):
    other = write_untrained(tmp_path / "other.pt", "resnet18", 64, seed=1)
    asks = MCRACTConfig(vision_backbone=str(other), device="cpu", cached_features=str(features))
    with pytest.raises(UserError, match="is of another encoder"):
        make_dataset(Settings(videos, asks))
    wrist = ("wrist",)
    folder = make_features(
        encoder_path, videos, tmp_path / "pooled", cameras=wrist, output="pooled"
    )
    with pytest.raises(UserError, match="holds pooled features"):
        CachedFeatures("v", features=folder, root=videos)
    folder = make_features(encoder_path, videos, tmp_path / "wrist", cameras=wrist)
    with pytest.raises(UserError, match="no features of observation.images.front"):
        CachedFeatures("v", features=folder, root=videos)


def test_other_data_are_refused(videos, features, tmp_path):
    changed = shutil.copytree(videos, tmp_path / "changed")
    (path,) = (changed / "data").rglob("*.parquet")
    table = parquet.read_table(path)
    action = [[value + 1 for value in row] for row in table.column("action").to_pylist()]
    place = table.column_names.index("action")
    column = pyarrow.array(action, table.field(place).type)
    parquet.write_table(table.set_column(place, table.field(place), column), path)
    with pytest.raises(UserError, match="is of other data"):
        CachedFeatures("v", features=features, root=changed)
