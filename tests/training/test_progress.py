"""The speed of a run and what its terminal shows. The log itself is tested in tests/runs."""

import time

import torch

from mcr.training.progress import Meter, TrainingLog, mean_of, to_numbers


def test_the_meter_counts_images_and_the_time_spent_waiting_for_data():
    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield number

    meter = Meter()
    began = time.perf_counter()
    for _ in meter.waiting_for(slow()):
        meter.count(10)
        time.sleep(0.02)
    speed = meter.read()
    elapsed = time.perf_counter() - began
    assert 30 / elapsed <= speed["images_per_s"] <= 30 / 0.21
    assert 0.15 / elapsed <= speed["data_wait"] < 1
    assert meter.read()["images_per_s"] == 0  # reading starts anew


def test_without_a_terminal_each_logged_step_is_a_line(tmp_path, capsys):
    with TrainingLog(tmp_path, step=0, num_steps=2) as log:
        log.advance()
        log.write(1, "train", {"loss": 0.5, "a/loss": 0.25, "b": 3.0})
        log.write(1, "val", {"loss": 0.75, "a/accuracy": 1.0})
    assert capsys.readouterr().out.splitlines() == [
        "step 1 train: loss 0.5, a/loss 0.25",
        "step 1 val: loss 0.75, a/accuracy 1",
    ]


def test_means_and_numbers():
    assert to_numbers({"a": torch.tensor(2.0), "b": torch.tensor(3)}) == {"a": 2.0, "b": 3.0}
    assert mean_of([{"a": 1.0}, {"a": 2.0}]) == {"a": 1.5}
