"""Manipulation centricity: hand-computed indices, a real Grad-CAM, files, the command."""

import json
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mcr.errors import UserError
from mcr.evaluation.centricity import (
    Saliency,
    baselines,
    find_saliency,
    jaccard,
    manipulation_centricity,
    sweep,
)
from mcr.evaluation.centricity_report import correlate_with_success, draw_saliency
from mcr.evaluation.masked_pictures import MaskedPictures, read_demonstrations, read_folders
from mcr.models.grad_cam import grad_cam
from mcr.models.loading import load_model
from mcr.models.untrained import write_untrained

SCRIPT = Path(__file__).parents[2] / "scripts" / "centricity.py"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def saliency_of(maps, masks):
    inputs = np.zeros((*masks.shape, 3), np.uint8)
    return Saliency(inputs, maps.astype(np.float32), masks, num_unseen=0)


# --------------------------------------------------------------------------- numbers


def test_jaccard_by_hand():
    ones, others = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    ones[0, :2], others[0, 1:3] = True, True  # 8 and 8 pixels, 4 in common
    ones[1] = True
    np.testing.assert_array_equal(jaccard(ones, others), [4 / 12, 0, 0])
    np.testing.assert_array_equal(jaccard(ones[:2], ones[:2]), [1, 1])


def test_sweep_by_hand():
    maps = np.array([[[0.2, 0.5], [0.8, 1.0]]])
    saliency = saliency_of(maps, np.array([[[False, False], [True, True]]]))
    # reached by 4, 3, 2 and 1 pixels
    np.testing.assert_allclose(sweep(saliency, [0.1, 0.5, 0.6, 1.0]), [[2 / 4, 2 / 3, 1, 1 / 2]])
    for threshold in (0, 1.5):
        with pytest.raises(UserError, match=f"threshold {threshold} must"):
            sweep(saliency, [threshold])


def test_baselines(rng):
    maps = np.zeros((2, 20, 20))
    maps[0, :, :5], maps[1, 3:8, 0] = 1, 1  # 100 and 5 pixels outside of the middle
    masks = np.zeros((2, 20, 20), bool)
    masks[:, 5:15, 5:15] = True  # 100 pixels in the middle
    found = baselines(saliency_of(maps, masks))
    np.testing.assert_allclose(found["whole"], [100 / 400] * 2)
    assert found["centre"][1] == pytest.approx(5 / 100)
    # a disc of 100 pixels has radius 5.64: 0.64 beyond the square's sides, without its corners
    assert 0.8 < found["centre"][0] < 0.9
    for place, area in enumerate((100, 5)):
        draws = []
        for _ in range(3000):
            pixels = np.zeros(400, bool)
            pixels[rng.choice(400, area, replace=False)] = True
            draws.append(jaccard(pixels.reshape(1, 20, 20), masks[:1])[0])
        assert found["random"][place] == pytest.approx(np.mean(draws), rel=0.05)


@pytest.fixture
def results():
    rows = [
        ("a", "t1", 1, 10),
        ("a", "t1", 3, 10),
        ("a", "t2", 2, 10),  # a: (0.2 + 0.2) / 2
        ("b", "t1", 8, 20),
        ("b", "t2", 4, 10),  # b: 0.4
        ("c", "t1", 9, 10),
        ("c", "t2", 9, 10),  # c: 0.9
        ("d", "t1", 9, 10),
    ]
    return pd.DataFrame(rows, columns=["encoder", "task", "successes", "trials"])


def test_correlation_by_hand(results):
    found = correlate_with_success({"a": 0.1, "c": 0.15, "b": 0.2}, results)
    expected = np.corrcoef([0.1, 0.15, 0.2], [0.2, 0.9, 0.4])[0, 1]
    assert found["pearson"] == pytest.approx(expected)
    assert found["spearman"] == pytest.approx(0.5)  # ranks 1 2 3 and 1 3 2: 1 - 6 * 2 / 24
    assert 0 < found["spearman_p"] <= 1


@pytest.mark.parametrize(
    ("centricity", "complaint"),
    [
        ({"a": 0.1, "b": 0.2, "clip": 0.3}, "r.csv: has no encoder 'clip'"),
        ({"a": 0.1, "b": 0.2}, "three encoders or more, not 2"),
        ({"a": 0.1, "b": 0.1, "c": 0.1}, "all centricities are 0.1"),
        ({"a": 0.1, "b": 0.2, "d": 0.3}, "d was not evaluated on t2"),
    ],
)
def test_no_correlation(results, centricity, complaint):
    with pytest.raises(UserError, match=complaint):
        correlate_with_success(centricity, results, "r.csv")
    with pytest.raises(UserError, match="lacks the columns successes, trials"):
        correlate_with_success(centricity, results[["encoder", "task"]])


# --------------------------------------------------------------------------- a real encoder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("centricity")
    return [write_untrained(folder / f"{seed}.pt", "resnet18", 64, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def encoder(weights):
    return load_model(weights[0])


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 96, 128, 3), np.uint8)


def test_centricity_is_1_for_the_own_map_and_0_for_its_complement(encoder, images):
    square = images[:, :64, :64]  # the preprocessing leaves it unchanged
    maps = grad_cam(encoder, encoder.preprocess(square)).numpy() >= 0.4
    np.testing.assert_array_equal(manipulation_centricity(encoder, square, maps, 0.4), [1, 1, 1])
    np.testing.assert_array_equal(manipulation_centricity(encoder, square, ~maps, 0.4), [0, 0, 0])


def test_frames_with_masks_outside_of_the_crop_are_left_out(encoder, images):
    masks = np.zeros((3, 96, 128), bool)
    masks[0, :, :5] = True  # outside of the central square
    masks[1:, 40:50, 60:70] = True
    frames = MaskedPictures("lift", ["a", "b", "c"], list(images), list(masks))
    saliency = find_saliency(encoder, frames)
    assert saliency.num_unseen == 1 and saliency.inputs.shape == (2, 64, 64, 3)
    expected = grad_cam(encoder, encoder.preprocess(images)).numpy()[1:]
    np.testing.assert_allclose(saliency.maps, expected, atol=1e-5)
    with pytest.raises(UserError, match="lift: in all 1 frames the masks lie outside"):
        find_saliency(encoder, MaskedPictures("lift", ["a"], [images[0]], [masks[0]]))


def test_saliency_holds_the_inputs_of_the_network(encoder, images):
    masks = np.ones((1, 64, 64), bool)
    saliency = find_saliency(
        encoder, MaskedPictures("t", ["a"], [images[0, :64, :64]], list(masks))
    )
    np.testing.assert_array_equal(saliency.inputs[0], images[0, :64, :64])


def test_pictures_of_other_sizes_in_one_task(encoder, images):
    masks = [np.ones((96, 128), bool), np.ones((70, 70), bool)]
    found = manipulation_centricity(encoder, [images[0], images[1, :70, :70]], masks)
    assert found.shape == (2,) and (found > 0).all()


def test_picture_of_saliency(tmp_path, rng):
    saliency = saliency_of(rng.random((4, 32, 32)), rng.random((4, 32, 32)) < 0.3)
    empty = saliency_of(np.zeros((4, 32, 32)), np.ones((4, 32, 32), bool))  # nothing to outline
    sizes = []
    for rows in ({"a": saliency}, {"a": saliency, "b/c": empty}):
        draw_saliency(rows, tmp_path / "saliency.png")
        with Image.open(tmp_path / "saliency.png") as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] < sizes[1][1]


def test_every_picture_needs_a_mask(encoder, images):
    with pytest.raises(UserError, match="3 pictures but 2 masks"):
        manipulation_centricity(encoder, images, np.ones((2, 96, 128), bool))


# --------------------------------------------------------------------------- files


@pytest.fixture
def demonstrations(tmp_path, images):
    """demonstrations(name, about={}, cameras=..., mask_shape=...) -> a file of two episodes."""

    def write(name, about=None, cameras=("front",), mask_shape=(96, 128), masked=True):
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            for demo in range(2):
                group = file.create_group(f"data/demo_{demo}")
                group["actions"] = np.zeros((3, 7))
                for camera in cameras:
                    group[f"obs/{camera}_image"] = images
                    if masked:
                        mask = np.zeros((3, *mask_shape), np.uint8)
                        mask[:, 40:50, 50 : 60 + demo] = 1
                        group[f"obs/{camera}_mask"] = mask
            if about is not None:
                file["data"].attrs["env_args"] = json.dumps(about)
        return path

    return write


def test_demonstrations(demonstrations, images):
    path = demonstrations("a.hdf5", {"task": "metaworld/hammer"})
    frames = read_demonstrations(path, frames=3)
    assert frames.task == "metaworld/hammer"
    assert frames.names == [f"a.hdf5 demo_{d} step {s}" for d, s in ((0, 0), (0, 2), (1, 2))]
    np.testing.assert_array_equal(frames.images[1], images[2])
    assert frames.masks[0].dtype == bool
    assert [mask.sum() for mask in frames.masks] == [100, 100, 110]
    assert len(read_demonstrations(path, frames=100).images) == 6
    assert read_demonstrations(demonstrations("b.hdf5", {"env_name": "Lift"})).task == "Lift"
    assert read_demonstrations(demonstrations("c.hdf5")).task == "c"
    two = demonstrations("d.hdf5", cameras=("front", "side"))
    assert len(read_demonstrations(two, "side").images) == 6


@pytest.mark.parametrize(
    ("options", "camera", "complaint"),
    [
        ({}, "frnt", "has no camera 'frnt'; did you mean 'front'"),
        ({"masked": False}, "", "pictures of front, but no masks .*mcr record --masks"),
        ({"masked": False}, "front", "no masks of them .obs/front_mask"),
        ({"cameras": ("front", "side")}, "", "masks of front, side: choose one --camera"),
        ({"mask_shape": (70, 96)}, "", "demo_0 step 0: the mask is 70 x 96, the picture 96 x 128"),
    ],
)
def test_bad_demonstrations(demonstrations, options, camera, complaint):
    with pytest.raises(UserError, match=complaint):
        read_demonstrations(demonstrations("bad.hdf5", **options), camera)


def test_damaged_demonstrations(demonstrations, tmp_path):
    path = demonstrations("short.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_1/obs/front_mask"]
        file["data/demo_1/obs/front_mask"] = np.ones((2, 96, 128), np.uint8)
    with pytest.raises(UserError, match="demo_1 has 3 actions but 2 frames of obs/front_mask"):
        read_demonstrations(path)
    with h5py.File(path, "r+") as file:
        for demo in range(2):
            file[f"data/demo_{demo}/obs/front_mask"][:] = 0
            del file[f"data/demo_{demo}/actions"]
            file[f"data/demo_{demo}/actions"] = np.zeros((2, 7))
    with pytest.raises(UserError, match="short: the masks of all 4 chosen frames are empty"):
        read_demonstrations(path)
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    with pytest.raises(UserError, match="empty.hdf5: holds no demonstrations"):
        read_demonstrations(tmp_path / "empty.hdf5")
    (tmp_path / "no.hdf5").write_text("not HDF5")
    with pytest.raises(UserError, match="no.hdf5: is no readable HDF5"):
        read_demonstrations(tmp_path / "no.hdf5")


@pytest.fixture
def folders(tmp_path, images):
    """Pictures of two tasks, and masks of several image modes that mark the same pixels."""
    mask = np.zeros((96, 128), np.uint8)
    mask[30:60, 40:80] = 1
    palette = Image.fromarray(mask, "P")
    palette.putpalette([0, 0, 0, 200, 0, 0])
    green = np.stack([mask * 0, mask * 255, mask * 0], axis=2)
    forms = {
        "lift/2.png": Image.fromarray(mask * 255),
        "lift/10.jpg": palette,
        "stack/x.png": Image.fromarray(green),
        "stack/y.png": Image.fromarray(np.dstack([green, np.full_like(mask, 255)])),
        "stack/z.png": Image.fromarray(mask.astype(bool)),
    }
    for name, form in forms.items():
        for root in ("pictures", "masks"):
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[0]).save(tmp_path / "pictures" / name)
        form.save((tmp_path / "masks" / name).with_suffix(".png"))
    return tmp_path / "pictures", tmp_path / "masks"


def test_folders(folders, images):
    lift, stack = read_folders(*folders)
    assert (lift.task, stack.task) == ("lift", "stack")
    assert [Path(name).name for name in lift.names] == ["10.jpg", "2.png"]
    np.testing.assert_array_equal(lift.images[1], images[0])
    for frames in (lift, stack):
        for mask in frames.masks:
            assert mask.dtype == bool and mask.sum() == 1200 and mask[30:60, 40:80].all()
    assert next(read_folders(folders[0] / "stack", folders[1] / "stack")).task == "stack"


def test_bad_folders(folders, tmp_path):
    mask = folders[1] / "lift" / "10.png"
    mask.unlink()
    with pytest.raises(UserError, match="masks/lift/10.png: is missing.* mask of .*lift/10.jpg"):
        next(read_folders(*folders))
    mask.write_text("no picture")
    with pytest.raises(UserError, match="10.png: is no readable mask"):
        next(read_folders(*folders))
    Image.new("L", (64, 48), 1).save(mask)
    with pytest.raises(UserError, match="10.jpg: the mask is 48 x 64, the picture 96 x 128"):
        next(read_folders(*folders))
    (folders[0] / "lift" / "10.jpg").write_text("no picture")
    with pytest.raises(UserError, match="lift/10.jpg"):
        next(read_folders(*folders))
    with pytest.raises(UserError, match="nothing: holds no pictures"):
        next(read_folders(tmp_path / "nothing", folders[1]))


# --------------------------------------------------------------------------- the command


@pytest.fixture
def run_script(monkeypatch, capsys, tmp_path):
    """run_script(*arguments) -> (exit code, stdout, stderr)"""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return run


def test_command_takes_encoders_from_results(run_script, weights, demonstrations):
    files = [demonstrations(f"{task}.hdf5", {"task": f"suite/{task}"}) for task in "xy"]
    rows = [
        {"encoder": f"net {n}", "source": path, "weights": "ab", "successes": n}
        for n, path in enumerate(weights)
    ]
    rows.append({"encoder": "blind", "source": "", "weights": "", "successes": 0})
    # its encoder has learnt since, so that the maps of the source are not those of the policy
    rows.append({"encoder": "from scratch", "source": weights[0], "weights": "", "successes": 4})
    rows = [row | {"task": "suite/x", "trials": 4} for row in rows]
    pd.DataFrame(rows).to_csv("results.csv", index=False)
    code, out, err = run_script(
        "--results", "results.csv", "--frames", 2, "--demonstrations", *files
    )
    assert (code, err) == (0, "")
    table = pd.read_csv("centricity/centricity.csv")
    assert table["encoder"].tolist() == ["net 0", "net 1", "net 2"] * 2
    assert table["task"].tolist() == ["suite/x"] * 3 + ["suite/y"] * 3
    assert table["frames"].eq(2).all() and table["centricity"].between(0, 1).all()
    frames = read_demonstrations(files[0], frames=2)
    expected = manipulation_centricity(load_model(weights[1]), frames.images, frames.masks)
    assert table["centricity"][1] == pytest.approx(expected.mean())
    means = table.groupby("encoder")["centricity"].mean()
    pearson = np.corrcoef(means, [0, 1, 2])[0, 1]
    assert f"over 3 encoders: Pearson {pearson:.2f}" in out
    assert f"| net 1 | **mean of tasks** | | {means['net 1']:.3f} |" in out
    assert Path("centricity/centricity.md").read_text() in out
    for name in ("sweep", "suite_x", "suite_y"):
        with Image.open(f"centricity/{name}.png") as image:
            assert image.size[0] > 300


def test_command_with_folders_and_named_encoders(run_script, weights, folders):
    arguments = ("--pictures", folders[0], "--masks", folders[1], "--frames", 1, "--out", "out")
    code, out, _ = run_script(f"mine={weights[0]}", *arguments)
    assert code == 0
    assert out.count("| mine |") == 3  # two tasks and their mean
    code, _, err = run_script(*arguments)
    assert code == 2 and err.startswith("error: no encoder: name one or more")
    code, _, err = run_script(weights[0], "--pictures", folders[0])
    assert code == 2 and "--pictures and --masks go together" in err
    code, _, err = run_script(weights[0], *arguments[:4], "--threshold", 0)
    assert code == 2 and "threshold 0.0 must lie above 0" in err
