"""`mcr inspect --verify`: every record of an RLDS data set is compared with its checksum."""

import json
import shutil
from pathlib import Path

import pytest

from mcr.cli import run
from mcr.data.tfrecord import read_records, write_records
from mcr.data.verification import verify_checksums
from mcr.errors import UserError
from tests.data.formats import FORMATS, record_episodes


@pytest.fixture
def shards(reference, tmp_path) -> Path:
    """A copy of the reference shards."""
    return shutil.copytree(reference, tmp_path / "1.0.0")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def verify(folder: Path, capsys) -> tuple[int, str]:
    return run(["inspect", str(folder), "--verify"]), capsys.readouterr().out


def test_sound_shards(shards, capsys):
    files = sorted(shards.glob("*tfrecord*"))
    size = sum(file.stat().st_size for file in files) / 1e9
    code, text = verify(shards, capsys)
    assert code == 0 and text.endswith("nothing is damaged or missing\n")
    assert f"{len(files)} of {len(files)} shards read, 4 sound records, {size:,.3f} GB" in text
    assert not shards.with_name("1.0.0.index").exists()


def test_every_kind_of_damage_is_named(shards, capsys):
    first, second = sorted(shards.glob("*tfrecord*"))
    sound = [record for record in read_records(first) if record.payload]
    flip(first, sound[0].offset + 5000)
    second.unlink()
    code, text = verify(shards, capsys)
    assert code == 2
    assert f"damaged: {first.name}, 1 records, first at byte {sound[0].offset:,}: bad CRC" in text
    assert "missing: of train, the shards 1\n" in text
    assert f"1 of 2 shards read, {len(sound) - 1} sound records" in text


@pytest.mark.parametrize("cut", [3, 5000])
def test_a_truncated_shard_is_named(shards, capsys, cut):
    first = min(shards.glob("*tfrecord*"))
    first.write_bytes(first.read_bytes()[:-cut])
    code, text = verify(shards, capsys)
    assert code == 2 and f"damaged: {first.name}" in text and "truncated" in text


def test_a_shard_without_its_last_record_is_named(shards, capsys):
    """It has only sound records; `shardLengths` tells that one is gone."""
    first = min(shards.glob("*tfrecord*"))
    payloads = [record.payload for record in read_records(first)]
    write_records(first, payloads[:-1])
    code, text = verify(shards, capsys)
    held, stated = len(payloads) - 1, len(payloads)
    assert code == 2
    assert f"{first.name} holds {held} records, dataset_info.json says {stated}" in text


def test_without_dataset_info_the_numbers_of_records_are_unknown(shards):
    info = json.loads((shards / "dataset_info.json").read_text())
    (shards / "dataset_info.json").unlink()
    verification = verify_checksums(shards, workers=2)
    assert info["splits"] and not verification.complaints
    assert "unknown: how many records" in str(verification)


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"rlds"}))
def test_other_formats_say_what_reads_all_of_them(kind, tmp_path):
    path = FORMATS[kind](tmp_path, record_episodes())
    with pytest.raises(UserError, match=r"--verify .*checksums.*`mcr (clean|index --pack)`"):
        verify_checksums(path)
