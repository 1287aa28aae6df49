"""Pictures: what they show, and that drawing them does not affect training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mcr.data.index import open_index
from mcr.data.selection import SelectionConfig, select_episodes
from mcr.errors import UserError
from mcr.training.checkpoint import load_checkpoint
from mcr.training.pictures import (
    Painter,
    colour_features,
    compose_clips,
    compose_episodes,
    in_eval_mode,
    principal_components,
)
from mcr.training.train import train


def test_pictures_do_not_change_the_result_of_a_run(tiny, tmp_path):
    paths = [
        train(tiny(steps=3, val_clips=0, pictures_every=every, run_dir=str(tmp_path / str(every))))
        for every in (0, 2)
    ]
    without, with_them = (load_checkpoint(path) for path in paths)
    for part in ("encoder", "objectives"):
        assert all(torch.equal(t, with_them[part][name]) for name, t in without[part].items())
    assert str(without["optimizer"]["state"]) == str(with_them["optimizer"]["state"])
    drawn = {path.name for path in (tmp_path / "2" / "pictures").iterdir()}
    assert drawn == {
        f"step_{step:08d}_{name}.png" for step in (0, 2) for name in ("clips", "episodes")
    }
    assert not (tmp_path / "0" / "pictures").exists()
    with Image.open(tmp_path / "2" / "pictures" / "step_00000002_clips.png") as image:
        assert image.width == 15 * 110 and len(image.convert("RGB").getcolors(2**24)) > 5_000


def test_modules_return_to_their_modes_also_after_an_error():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5))
    model[0].eval()
    with pytest.raises(ZeroDivisionError), in_eval_mode(model):
        assert not any(module.training for module in model.modules())
        _ = 1 / 0
    assert [module.training for module in model.modules()] == [True, False, True]


def test_an_unreadable_frame_stops_or_is_left_out(tiny, shards, tmp_path):
    index = open_index(shards, workers=1)
    position = int(index.starts[0])  # the first frame of the first episode
    with (index.root / bytes(index.files[index.frame_files[0, 0]]).decode()).open("r+b") as file:
        file.seek(int(index.frame_places[0][0][position]))
        file.write(bytes(1000))
    episodes, _ = select_episodes(index, SelectionConfig(min_frames=30))
    config = tiny().data
    with pytest.raises(UserError, match="step 0"):
        Painter(tmp_path, index, episodes, config, seed=0)
    painter = Painter(tmp_path, index, episodes, replace(config, on_error="skip"), seed=0)
    assert [len(times) for times, _ in painter._episodes] == [31, 32, 32, 32]


def test_principal_components_of_a_line_in_space():
    along = np.linspace(-1, 1, 9)
    direction = np.array([0.0, -0.6, 0.0, -0.8])  # the sign is turned: the largest weight is > 0
    components, share = principal_components(5 + along[:, None] * direction, 3)
    np.testing.assert_allclose(components, np.stack([-along, 0 * along, 0 * along], 1), atol=1e-12)
    np.testing.assert_allclose(share, [1, 0, 0], atol=1e-12)
    few, share = principal_components(np.eye(2), 3)  # two points span one direction
    assert few.shape == (2, 3) and share[0] == pytest.approx(1) and (few[:, 2] == 0).all()


def test_same_features_have_the_same_colour_wherever_they_are():
    generator = np.random.default_rng(0)
    contents = generator.normal(size=(3, 8))  # three kinds of content, of eight channels
    kinds = generator.integers(0, 3, (6, 4, 4))
    place = generator.normal(size=(8, 4, 4)) * 100  # what all pictures have in common: padding, ...
    kinds[:, 0, 0] = kinds[:, 1, 1] = [0, 1, 2, 0, 1, 2]
    features = np.moveaxis(contents[kinds], -1, 1) + place
    colours = colour_features(features).astype(int)
    assert np.abs(colours[:, 0, 0] - colours[:, 1, 1]).max() <= 1
    different = np.abs(colours[:3, None, 0, 0] - colours[None, :3, 0, 0]).max(axis=-1)
    assert (different + 255 * np.eye(3)).min() > 20


def test_figures_show_their_data():
    inputs = np.full((10, 8, 8, 3), 60, np.uint8)
    inputs[3] = 200
    saliency = np.zeros((10, 8, 8))
    saliency[7] = 1
    figure = compose_clips(inputs, saliency, np.random.rand(10, 4, 2, 2), ["one", "two"])
    entering, overlay, _ = (axes.images[0].get_array() for axes in figure.axes)
    pitch = 8 + 3
    assert (entering[:8, 3 * pitch : 3 * pitch + 8] == 200).all()  # clip 0, "late"
    assert (entering[pitch : pitch + 8, :8] == 60).all()
    red = overlay[..., 0].astype(int) - overlay[..., 2]
    assert red[pitch + 4, 2 * pitch + 4] > 40 > red[4, 4]  # hot in clip 1, "middle"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one", "two"]

    embeddings = [np.random.rand(5, 8), np.random.rand(7, 8)]
    times = [np.linspace(0, 1, 5), np.linspace(0, 1, 7)]
    by_time = compose_episodes(embeddings, times).axes[0]
    dots = [collection.get_array() for collection in by_time.collections]
    assert [len(colours) for colours in dots] == [5, 7]
    np.testing.assert_allclose(dots[1], times[1])
