import dataclasses

import numpy as np
import pytest
import torch

from mcr.data.batch import Batch
from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig
from mcr.data.sampling import SamplingConfig, draw_samples
from mcr.data.selection import Episodes
from mcr.errors import UserError
from tests.episodes import read_episodes


def config(**options):
    return DataConfig(**{"workers": 0, "prefetch": 2, **options})


def dataset(root, options=None, seed=0):
    index = open_index(root)
    return ClipDataset(index, Episodes(np.arange(len(index))), options or config(), seed)


def first_batches(root, count=2, size=6, options=None, **loader_options):
    options = options or config()
    loader = iter(ClipLoader(dataset(root, options), options, size, **loader_options))
    return [next(loader) for _ in range(count)]


def assert_same(a: Batch, b: Batch):
    for field in dataclasses.fields(Batch):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


def joined(batches):
    return Batch(
        **{
            field.name: torch.cat([getattr(batch, field.name) for batch in batches])
            for field in dataclasses.fields(Batch)
        }
    )


def test_batch_has_the_contracts_shapes_and_types(shards):
    (batch,) = first_batches(shards, 1)
    shapes = {f.name: tuple(getattr(batch, f.name).shape) for f in dataclasses.fields(Batch)}
    assert shapes == {
        "frames": (6, 5, 3, 180, 320),
        "crops": (6, 5, 4),
        "colors": (6, 5, 2, 3),
        "actions": (6, 5, 10),
        "window_states": (6, 2, 3, 17),
        "window_actions": (6, 2, 2, 10),
        "samples": (6,),
    }
    assert batch.frames.dtype == torch.uint8
    assert batch.actions.dtype == batch.crops.dtype == batch.colors.dtype == torch.float32
    assert dataset(shards).dimensions == batch.dimensions


def test_batch_holds_what_was_drawn(shards):
    """The batch is compared with the episodes, which are read without the index."""
    index = open_index(shards)
    episodes = {episode.origin.name: episode for episode in read_episodes(shards)}
    (batch,) = first_batches(shards, 1, options=config(rotation="euler"))
    sizes = index.sizes[:, :2]  # of the exterior cameras
    draw = draw_samples(0, 0, 6, np.asarray(index.lengths), sizes, SamplingConfig())
    for i in range(6):
        signals = episodes[index.names[draw.episodes[i]].decode()].signals
        states = np.concatenate(
            [signals[key] for key in ("cartesian_position", "gripper_position", "joint_position")],
            1,
        )
        assert np.array_equal(batch.actions[i], signals["action"][draw.steps[i]])
        assert np.array_equal(batch.window_states[i], states[draw.windows[i]])
        assert np.array_equal(batch.window_actions[i], signals["action"][draw.windows[i][:, :-1]])


def test_a_chunk_holds_the_next_actions_and_repeats_the_last(shards):
    options = config(rotation="euler", sampling=SamplingConfig(action_chunk=30))
    index = open_index(shards)
    episodes = {episode.origin.name: episode for episode in read_episodes(shards)}
    (batch,) = first_batches(shards, 1, options=options)
    sizes = index.sizes[:, :2]
    draw = draw_samples(0, 0, 6, np.asarray(index.lengths), sizes, SamplingConfig())
    assert batch.actions.shape == (6, 5, 30 * 7) and batch.dimensions.chunk == 30
    assert dataset(shards, options).dimensions == batch.dimensions
    for i in range(6):
        actions = episodes[index.names[draw.episodes[i]].decode()].signals["action"]
        for frame, step in enumerate(draw.steps[i]):
            following = list(actions[step : step + 30])
            following += [actions[-1]] * (30 - len(following))
            assert np.array_equal(batch.actions[i, frame].reshape(30, 7), following)


def test_shards_and_tree_give_the_same_batches(shards, tree):
    for a, b in zip(first_batches(shards), first_batches(tree), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stream_does_not_depend_on_workers(shards, workers):
    expected = first_batches(shards, 5)
    got = first_batches(shards, 5, options=config(workers=workers))
    for a, b in zip(expected, got, strict=True):
        assert_same(a, b)


def test_the_stream_does_not_depend_on_processes_or_restarts(shards):
    expected = first_batches(shards, 3)
    ranks = [first_batches(shards, 3, rank=rank, world_size=2) for rank in (0, 1)]
    for batch, *shares in zip(expected, *ranks, strict=True):
        assert_same(batch, joined(shares))
    (resumed,) = first_batches(shards, 1, first_sample=12)
    assert_same(resumed, expected[2])


def test_a_batch_that_does_not_divide_is_refused(shards):
    with pytest.raises(UserError, match="do not divide"):
        first_batches(shards, rank=0, world_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ["exterior_image_1_lef"]}, "did you mean 'exterior_image_1_left'"),
        ({"state_keys": ["cartesian"]}, "cartesian"),
        ({"action_space": "defautl"}, "did you mean 'default'"),
        ({"on_error": "ignore"}, "on_error"),
    ],
)
def test_a_camera_or_signal_that_the_data_lacks_is_refused(shards, options, message):
    with pytest.raises(UserError, match=message):
        dataset(shards, config(**options))


def test_without_named_cameras_the_schemas_are_used(shards):
    expected = first_batches(
        shards, 1, options=config(cameras=["exterior_image_1_left", "exterior_image_2_left"])
    )
    assert_same(first_batches(shards, 1, options=config(cameras=[]))[0], expected[0])
    wrist = first_batches(shards, 1, options=config(cameras=["wrist_image_left"]))
    assert not torch.equal(wrist[0].frames, expected[0].frames)


def damage_frames(root, share):
    """Overwrite the beginning of some JPEGs in the shards. Their sizes stay the same."""
    index = open_index(root)
    rng = np.random.default_rng(0)
    for row in range(len(index)):
        path = index.source / index.files[index.frame_files[row, 0]].decode()
        with path.open("r+b") as file:
            for step in range(int(index.lengths[row])):
                for camera in range(len(index.cameras)):
                    if rng.random() < share:
                        file.seek(int(index.frame_places[camera][0][index.starts[row] + step]))
                        file.write(b"\0\0\0\0")


def test_an_unreadable_frame_stops_the_run_and_is_named(shards):
    damage_frames(shards, 1.0)
    with pytest.raises(UserError, match=r"tfrecord-0000.*episode.*exterior.*step \d+"):
        first_batches(shards, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_redraws_only_the_broken_samples(shards, workers, capsys):
    good = first_batches(shards, 2)
    damage_frames(shards, 0.05)
    options = config(on_error="skip", workers=workers)
    loader = ClipLoader(dataset(shards, options), options, 6)
    got = list(zip(range(2), loader, strict=False))
    assert 0 < loader.num_errors < 12
    assert "skipped a sample" in capsys.readouterr().out
    unchanged = [
        torch.equal(good[i].frames[j], batch.frames[j]) for i, batch in got for j in range(6)
    ]
    assert sum(unchanged) >= 12 - loader.num_errors
    assert not all(unchanged)


def test_too_many_unreadable_samples_stop_the_run(shards):
    damage_frames(shards, 0.2)
    options = config(on_error="skip", max_errors=3)
    with pytest.raises(UserError, match="max_errors=3"):
        first_batches(shards, 20, options=options)


def test_a_shard_cut_short_after_indexing_is_named(shards):
    data = dataset(shards)
    for shard in shards.glob("*tfrecord*"):
        shard.write_bytes(shard.read_bytes()[:1000])
    loaded = data.load([0, 1])
    assert loaded.batch is None and "tfrecord" in loaded.errors[0]
