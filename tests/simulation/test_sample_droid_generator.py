"""scripts/make_sample_droid.py with the simulator: what a run that was stopped has recorded."""

from pathlib import Path

from mcr.data.tfrecord import read_records

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_an_interrupted_run_is_continued(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from sample_droid import dataset
    from sample_droid.look import Style
    from sample_droid.plan import plan_episodes

    root, style = tmp_path / "made", Style(draft=True)
    plans = plan_episodes(2, ["lift"], seed=0)
    first, second = dataset._record_all(root / ".recorded", plans, 1, style)
    kept = first.record.read_bytes()
    second.record.unlink()  # as if the run had been killed while it was being recorded
    first.record.write_bytes(kept + b"as it was")

    summaries = dataset.write_dataset(root, plans, 1, 1, style)
    assert [summary.task for summary in summaries] == ["lift", "lift"]
    (shard,) = (root / "1.0.0").glob("*.tfrecord-*")
    payloads = [bytes(record.payload) for record in read_records(shard)]
    assert payloads[0] == kept + b"as it was"  # the finished episode was not recorded again
    assert len(payloads) == 2
    assert not (root / ".recorded").exists()
