"""Mixtures: entries -> options of each data set, weights -> clips, and the clips of a batch."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mcr.data.index import open_index
from mcr.data.loader import ClipDataset, ClipLoader, DataConfig, MixtureLoader
from mcr.data.mixture import clip_counts, data_sets, weights, with_data_sets
from mcr.data.sampling import SamplingConfig
from mcr.data.selection import Episodes
from mcr.errors import UserError
from mcr.runs.options import addable, check_overrides, flatten
from mcr.training.config import Config

BRIDGE = Path(__file__).parent / "reference/oxe/bridge_like/1.0.0"
COUNTS = {"bridge": 4, "droid": 8}


# --------------------------------------------------------------------------- numbers of clips


def test_clips_are_divided_by_weight():
    assert clip_counts({"a": 3, "b": 1}, 32, 1) == {"a": 24, "b": 8}
    assert clip_counts({"": 1.0}, 32, 1) == {"": 32}


def test_the_largest_remainders_get_what_is_left_over():
    # exact: 4.9, 2.1, 2.8 of 10 clips: 4 + 2 + 2 leave 2 clips
    assert clip_counts({"a": 0.5, "b": 0.214, "c": 0.286}, 10, 1) == {"a": 5, "b": 2, "c": 3}
    # units of 4 clips, exact: 5.6 and 2.4
    assert clip_counts({"a": 0.7, "b": 0.3}, 32, 4) == {"a": 24, "b": 8}


def test_counts_add_up_and_differ_from_the_exact_share_by_less_than_a_unit():
    generator = np.random.default_rng(0)
    for _ in range(300):
        shares = dict(enumerate(generator.uniform(1, 10, generator.integers(1, 7)).tolist()))
        unit, units = generator.integers(1, 9), generator.integers(100, 300)
        counts = clip_counts(shares, int(unit * units), int(unit))
        assert sum(counts.values()) == unit * units
        for name, count in counts.items():
            assert count % unit == 0
            assert abs(count - unit * units * shares[name] / sum(shares.values())) < unit + 1e-9


def test_a_data_set_that_gets_no_clip_is_named():
    with pytest.raises(UserError, match=r"tiny gets none of the 16 clips .* weight is 1 of 101"):
        clip_counts({"large": 100, "tiny": 1}, 16, 1)


def test_a_multiple_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(UserError, match="30 clips do not divide into multiples of 4"):
        clip_counts({"a": 1}, 30, 4)


# --------------------------------------------------------------------------- entries


def test_an_entry_differs_from_the_other_options_only_where_it_says_so():
    sampling = SamplingConfig(color_jitter=0.4, window=2)
    mix = {"b": {"root": "/b", "sampling": {"window": 5}}, "a": {"root": "/a", "weight": 3}}
    data = DataConfig(mix=mix, sampling=sampling, rotation="euler", workers=7)
    sets = data_sets(data)
    assert list(sets) == ["a", "b"]  # the order that is typed changes nothing
    assert flatten(sets["a"]) == flatten(dataclasses.replace(data, root="/a", mix={}))
    assert flatten(sets["b"].sampling) == flatten(dataclasses.replace(sampling, window=5))
    assert weights(data) == {"a": 3, "b": 1.0}


def test_options_that_are_written_out_say_the_same():
    mix = {"b": {"root": "/b", "sampling": {"window": 5}}, "a": {"root": "/a", "weight": 3}}
    data = DataConfig(mix=mix, mix_multiple=2)
    written = with_data_sets(data, data_sets(data))
    assert data_sets(written) == data_sets(data) and weights(written) == weights(data)
    assert flatten(written)["mix.b.sampling.window"] == 5
    assert "mix.b.workers" not in flatten(written)


def test_without_a_mix_there_is_one_data_set_without_a_name():
    data = DataConfig(root="/data")
    assert data_sets(data) == {"": data} and weights(data) == {"": 1.0}
    assert with_data_sets(data, {"": data}) == data


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"a": {"weight": 1}}, r"data.mix.a=.*give its options, such as \{root: PATH, weight: 1\}"),
        ({"a": "/data"}, r"data.mix.a=/data: give its options"),
        ({"a": {"root": "/a", "wieght": 1}}, "data.mix.a.wieght'; did you mean 'weight'"),
        ({"a": {"root": "/a", "sampling": {"windw": 1}}}, "did you mean 'sampling.window'"),
        ({"a": {"root": "/a", "workers": 1}}, "concerns all data sets: set data.workers"),
        ({"a": {"root": "/a", "mix": {"b": {}}}}, "concerns all data sets"),
        ({"a": {"root": "/a", "pack": "maybe"}}, "data.mix.a.pack=.*maybe"),
        ({"a": {"root": "/a", "sampling": {"alpha": 2}}}, "data.mix.a.sampling.alpha=2"),
        ({"a b": {"root": "/a"}}, "a name consists of letters, digits"),
        ({"a/b": {"root": "/a"}}, "a name consists of letters, digits"),
    ],
)
def test_bad_entries_are_refused_in_a_sentence(mix, message):
    with pytest.raises(UserError, match=message):
        data_sets(DataConfig(mix=mix))


def test_a_root_beside_a_mix_is_refused():
    with pytest.raises(UserError, match="exclude each other"):
        data_sets(DataConfig(root="/data", mix={"a": {"root": "/a"}}))


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "3", True])
def test_bad_weights_are_refused(weight):
    with pytest.raises(UserError, match=r"data.mix.a.weight=.* must be a finite number"):
        weights(DataConfig(mix={"a": {"root": "/a", "weight": weight}}))


def test_weights_that_sum_to_zero_are_refused():
    mix = {name: {"root": "/a", "weight": 0} for name in ("a", "b")}
    with pytest.raises(UserError, match="the weights of a, b sum to 0"):
        weights(DataConfig(mix=mix))


def test_a_name_that_is_given_twice_on_the_command_line_is_refused():
    check_overrides(["data.mix={a: {root: x}, b: {root: x, weight: 2}}", "steps=3"], Config)
    check_overrides(["data.mix={a: {sampling: {a: 1}}, b:{a:1}}"], Config)
    with pytest.raises(UserError, match="data.mix names a twice"):
        check_overrides(["data.mix={a: {root: x}, b: {root: y}, 'a': {root: [z, 1]}}"], Config)


def test_an_option_of_an_entry_may_be_added_to_a_recipe():
    arguments = ["data.mix.bridge.weight=2", "steps=3", "--cfg", "data.mix={}"]
    expected = ["++data.mix.bridge.weight=2", "steps=3", "--cfg", "++data.mix={}"]
    assert addable(arguments, Config) == expected
    assert addable(addable(arguments, Config), Config) == addable(arguments, Config)
    check_overrides(addable(arguments, Config), Config)


# --------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def sets(tmp_path_factory, reference) -> dict[str, ClipDataset]:
    """Two data sets whose pictures, states and actions have different sizes."""
    folder = tmp_path_factory.mktemp("indices")
    roots = {"bridge": BRIDGE, "droid": reference}
    indices = {name: open_index(root, folder / name, workers=1) for name, root in roots.items()}
    return {
        name: ClipDataset(index, Episodes(np.arange(len(index))), DataConfig(), seed=3)
        for name, index in indices.items()
    }


def batches(sets, count, **options):
    workers = options.pop("workers", 0)
    loader = iter(MixtureLoader(sets, COUNTS, DataConfig(workers=workers), **options))
    return [next(loader) for _ in range(count)]


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def test_a_batch_holds_clips_of_each_data_set_in_its_own_sizes(sets):
    (first,) = batches(sets, 1)
    assert {name: len(batch) for name, batch in first.items()} == COUNTS
    assert {name: batch.actions.shape[-1] for name, batch in first.items()} == {
        name: clips.action_space.size for name, clips in sets.items()
    }
    assert first["bridge"].frames.shape[-2:] != first["droid"].frames.shape[-2:]


def test_clips_are_numbered_through_and_drawn_by_their_numbers(sets):
    for number, parts in enumerate(batches(sets, 3)):
        assert parts["bridge"].samples.tolist() == [12 * number + n for n in range(4)]
        assert parts["droid"].samples.tolist() == [12 * number + 4 + n for n in range(8)]
        for name, batch in parts.items():
            assert same(batch, sets[name].load(batch.samples.tolist()).batch)


def test_workers_restarts_and_processes_change_nothing(sets):
    expected = batches(sets, 4)
    for got in (batches(sets, 4, workers=2), batches(sets, 1) + batches(sets, 3, first_sample=12)):
        for mine, theirs in zip(got, expected, strict=True):
            assert all(same(mine[name], theirs[name]) for name in sets)
    halves = [batches(sets, 4, rank=rank, world_size=2) for rank in range(2)]
    for left, right, whole in zip(*halves, expected, strict=True):
        for name in sets:
            numbers = [*left[name].samples.tolist(), *right[name].samples.tolist()]
            assert numbers == whole[name].samples.tolist()
            assert len(left[name]) == len(right[name])


def test_processes_that_cannot_share_the_clips_equally_are_refused(sets):
    with pytest.raises(UserError, match="4 clips of bridge do not divide by 8 processes; set data"):
        batches(sets, 1, world_size=8)


# --------------------------------------------------------------------------- fewer frames


def test_frames_that_are_not_read_leave_the_others_as_they_were(sets):
    index = sets["droid"]._index
    episodes = Episodes(np.arange(len(index)))
    every = ClipDataset(index, episodes, DataConfig(), seed=3)
    some = ClipDataset(index, episodes, DataConfig(), seed=3, places=(1, 2, 3))
    whole, part = (next(iter(ClipLoader(c, DataConfig(workers=0), 4))) for c in (every, some))
    for field in dataclasses.fields(whole):
        expected, got = getattr(whole, field.name), getattr(part, field.name)
        if field.name in ("frames", "crops", "colors"):
            expected = expected[:, 1:4]
        assert torch.equal(got, expected), field.name
