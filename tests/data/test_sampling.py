import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from mcr.data.batch import EARLY, END, LATE, MIDDLE, START
from mcr.data.sampling import (
    TRAIN,
    VALIDATION,
    SamplingConfig,
    center_crop,
    draw_samples,
)
from mcr.errors import UserError

SIZE = (180, 320)


def draw(first=0, count=50, lengths=(40, 77, 250), config=None, **options):
    lengths = np.array(lengths)
    return draw_samples(
        options.pop("seed", 0),
        first,
        count,
        lengths,
        options.pop("sizes", np.broadcast_to(SIZE, (len(lengths), 2, 2))),
        config or SamplingConfig(),
        **options,
    )


def same(a, b):
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in vars(a))


def test_a_sample_depends_on_seed_and_number_only():
    whole = draw(0, 50)
    for first, count in [(0, 1), (7, 5), (49, 1), (13, 37)]:
        part = draw(first, count)
        for key, value in vars(part).items():
            assert np.array_equal(value, getattr(whole, key)[first : first + count]), key


def test_another_seed_stream_or_attempt_gives_another_sample():
    assert not same(draw(seed=0), draw(seed=1))
    assert not same(draw(stream=TRAIN), draw(stream=VALIDATION))
    assert not same(draw(attempt=0), draw(attempt=1))


@pytest.mark.parametrize("length", [3, 4, 40, 251])
def test_steps_cover_exactly_upstreams_ranges(length):
    steps = draw(count=20_000, lengths=[length]).steps
    assert set(steps[:, START]) == set(range(1, min(int(0.2 * length) + 1, length - 1) + 1))
    assert set(steps[:, END]) == set(range(int(0.8 * length) - 1, length))
    assert set(steps[:, MIDDLE]) == set(range(2, length))
    assert steps.min() >= 1  # upstream never draws frame 0
    assert (steps[:, EARLY] < steps[:, MIDDLE]).all()
    assert (steps[:, MIDDLE] <= steps[:, LATE]).all()
    assert (steps[:, LATE] == steps[:, MIDDLE]).any()  # upstream's rule allows it


def test_steps_are_uniform_in_their_ranges():
    steps = draw(count=60_000, lengths=[12]).steps
    counts = np.bincount(steps[:, MIDDLE], minlength=12)[2:]
    assert np.abs(counts / 6000 - 1).max() < 0.06  # 4.5 standard deviations
    given = steps[steps[:, MIDDLE] == 7]
    early = np.bincount(given[:, EARLY], minlength=7)[1:7]
    assert np.abs(early / early.mean() - 1).max() < 0.15


def test_windows_stay_inside_the_episode():
    window = 5
    draws = draw(count=5000, lengths=[6], config=SamplingConfig(window=window))
    for place, centre in enumerate((EARLY, LATE)):
        for step, steps in zip(draws.steps[:, centre], draws.windows[:, place], strict=True):
            first = max(1, step - window // 2)
            assert steps.tolist() == [min(first + i, 5) for i in range(window)]


def test_random_crops_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    picture = torch.empty(3, *SIZE)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, (0.5, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    ours = draw(count=800).crops.reshape(-1, 4)
    top, left, height, width = ours.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 180).all() and (left + width <= 320).all()
    fallback = np.array([0, 40, 180, 240])
    share = (ours == fallback).all(1).mean()
    assert share == pytest.approx((theirs == fallback).all(1).mean(), abs=0.03)
    assert np.allclose(ours.mean(0), theirs.mean(0), atol=3.0)
    assert np.allclose(ours.std(0), theirs.std(0), atol=3.0)


def test_crops_per_clip_are_shared_and_per_frame_are_not():
    shared = draw(config=SamplingConfig(crop_per="clip")).crops
    assert (shared == shared[:, :1]).all()
    own = draw(config=SamplingConfig(crop_per="frame")).crops
    assert (own != own[:, :1]).any(-1)[:, 1:].all(1).mean() > 0.9


def test_without_jitter_colours_stay_as_they_are():
    colors = draw().colors
    assert (colors[:, :, 0] == 1).all() and (colors[:, :, 1] == 0).all()


def test_jitter_changes_nothing_else_that_is_drawn():
    plain, jittered = draw(), draw(config=SamplingConfig(color_jitter=0.4))
    for key in ("episodes", "cameras", "steps", "windows", "crops"):
        assert np.array_equal(getattr(plain, key), getattr(jittered, key)), key


def test_brightness_contrast_and_balance_cover_their_ranges():
    jitter = 0.4
    colors = draw(count=4000, config=SamplingConfig(color_jitter=jitter)).colors.astype(float)
    gain, offset = colors[:, :, 0], colors[:, :, 1]
    tint = gain * 0.45 + offset  # of mid-grey, which contrast leaves alone: brightness x balance
    contrast = gain * 0.45 / tint
    assert np.allclose(contrast, contrast[..., :1])
    log_contrast, log_tint = np.log(contrast[..., 0]) / jitter, np.log(tint / 0.45) / jitter
    red_to_green = log_tint[..., 0] - log_tint[..., 1]
    assert np.abs(log_contrast).max() == pytest.approx(1, rel=0.01)
    assert log_contrast.std() == pytest.approx(np.sqrt(1 / 3), rel=0.02)
    assert log_tint.std() == pytest.approx(np.sqrt((1 + 0.5**2) / 3), rel=0.02)
    assert red_to_green.std() == pytest.approx(np.sqrt(2 * 0.5**2 / 3), rel=0.02)
    assert abs(np.corrcoef(log_contrast.ravel(), log_tint[..., 0].ravel())[0, 1]) < 0.03


def test_colours_are_shared_as_crops_are():
    shared = draw(config=SamplingConfig(crop_per="clip", color_jitter=0.4)).colors
    assert (shared == shared[:, :1]).all()
    own = draw(config=SamplingConfig(color_jitter=0.4)).colors
    assert (own[:, 1:] != own[:, :1]).all()


def test_center_crop_is_resize_256_crop_224():
    top, left, height, width = center_crop((256, 456))
    assert (top, left, height, width) == (16, 116, 224, 224)
    assert (draw(config=SamplingConfig(crop="center")).crops == center_crop(SIZE)).all()


def test_cameras_of_several_sizes_get_boxes_within_their_own_frames():
    sizes = np.array([[(180, 320), (96, 128)], [(64, 64), (480, 640)], [(0, 0), (50, 70)]])
    drawn = draw(count=3000, sizes=sizes)
    own = sizes[drawn.episodes, drawn.cameras][:, None]
    assert (own > 0).all(), "a camera that the episode has"
    ends = drawn.crops[..., :2] + drawn.crops[..., 2:]
    assert (drawn.crops[..., :2] >= 0).all() and (ends <= own).all()
    central = draw(count=3000, sizes=sizes, config=SamplingConfig(crop="center"))
    assert (central.crops == center_crop(own[:, :1])).all()


def test_an_absent_camera_is_never_drawn_and_the_others_equally_often():
    sizes = np.broadcast_to(SIZE, (3, 3, 2)).copy()
    sizes[0, 1], sizes[1, 0], sizes[1, 1] = 0, 0, 0
    drawn = draw(count=30_000, sizes=sizes)
    counts = np.zeros((3, 3))
    np.add.at(counts, (drawn.episodes, drawn.cameras), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert (shares[sizes[..., 0] == 0] == 0).all()
    assert shares == pytest.approx(np.array([[0.5, 0, 0.5], [0, 0, 1], [1 / 3] * 3]), abs=0.02)


@pytest.mark.parametrize(
    "options",
    [{"crop": "centre"}, {"crop_per": "video"}, {"alpha": 0}, {"window": 0}, {"color_jitter": -1}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        SamplingConfig(**options)


# ---- LATE after MIDDLE

AFTER = SamplingConfig(late_after_middle=True)


@pytest.mark.parametrize("length", [4, 5, 40, 251])
def test_late_comes_after_middle_on_request(length):
    steps = draw(count=20_000, lengths=[length], config=AFTER).steps
    assert (steps[:, LATE] > steps[:, MIDDLE]).all()
    assert (steps[:, EARLY] < steps[:, MIDDLE]).all() and steps.min() >= 1
    assert set(steps[:, MIDDLE]) == set(range(2, length - 1))
    assert set(steps[:, LATE]) <= set(range(3, length)) and steps[:, LATE].max() == length - 1


def test_the_shortest_episode_has_no_frame_after_middle():
    steps = draw(count=100, lengths=[3], config=AFTER).steps
    assert set(steps[:, MIDDLE]) == set(steps[:, LATE]) == {2}


def test_the_option_changes_middle_early_and_late_alone():
    with_it, without = draw(config=AFTER), draw()
    for name in ("episodes", "cameras", "crops", "colors"):
        assert np.array_equal(getattr(with_it, name), getattr(without, name)), name
    for frame in (START, END):
        assert np.array_equal(with_it.steps[:, frame], without.steps[:, frame])
