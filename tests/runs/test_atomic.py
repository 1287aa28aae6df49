"""Atomic writes: the old content or the new one, and nothing else."""

import pytest

from mcr.runs import atomic
from mcr.runs.atomic import atomic_path, remove, remove_all_leftovers, write_text
from tests.killed_write import leave_half


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_an_error_keeps_the_old_content(tmp_path):
    write_text(tmp_path / "a.txt", "old: é")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        _ = 1 / 0
    assert (tmp_path / "a.txt").read_bytes() == "old: é".encode()
    assert names(tmp_path) == ["a.txt"]


def test_what_a_killed_process_left_is_not_mixed_with_the_new_content(tmp_path):
    leave_half(tmp_path / "a")
    with atomic_path(tmp_path / "a") as partial:
        partial.mkdir()
        (partial / "fresh").write_text("")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["fresh"]


def test_what_a_living_process_or_another_machine_writes_is_left_alone(tmp_path, monkeypatch):
    with atomic_path(tmp_path / "a") as ours:
        ours.write_text("1")
        with atomic_path(tmp_path / "a") as theirs:  # a second writer of the same name
            assert theirs != ours
            theirs.write_text("2")
        assert ours.exists()
    assert (tmp_path / "a").read_text() == "1"
    leftover = leave_half(tmp_path / "a")
    monkeypatch.setattr(atomic, "_host", lambda: "another_machine")
    write_text(tmp_path / "a", "3")
    assert leftover.exists()
    remove_all_leftovers(tmp_path)
    assert names(tmp_path) == ["a"]


def test_a_full_folder_is_replaced_only_on_request(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "old").write_text("")
    with pytest.raises(OSError), atomic_path(folder) as partial:
        partial.mkdir()
    assert names(folder) == ["old"] and names(tmp_path) == ["a"]
    with atomic_path(folder, replace_folder=True) as partial:
        partial.mkdir()
        (partial / "new").write_text("")
    assert names(folder) == ["new"] and names(tmp_path) == ["a"]


def test_remove_deletes_a_link_and_not_its_target(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    remove(tmp_path / "link")
    remove(tmp_path / "absent")
    assert names(tmp_path) == ["target"]
    remove(target)
    assert names(tmp_path) == []
