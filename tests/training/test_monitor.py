"""The monitor: when it reads the flags of a step. test_train.py tests that it stops a run."""

import torch

from mcr.training.engine import Step
from mcr.training.monitor import StepMonitor


def test_on_a_gpu_flags_are_read_one_step_late_and_none_is_lost():
    monitor = StepMonitor(torch.device("cuda"))  # the flags may lie anywhere
    flags = [[0.0, 0, 0], [0, 1, 0], [0, 0, 1]]
    finished = []
    for number, of_step in enumerate(flags):
        monitor.add(
            number, Step({"loss": torch.ones(())}, torch.ones(1), None, torch.tensor(of_step))
        )
        finished += [status.number for status in monitor.finished(wait=False)]
    assert finished == [0, 1]
    (last,) = monitor.finished(wait=True)
    assert (last.number, last.bad_loss, last.bad_gradient, last.wants_to_stop) == (2, 0, 0, 1)


def test_on_a_cpu_flags_are_read_at_once():
    monitor = StepMonitor(torch.device("cpu"))
    monitor.add(7, Step({"loss": torch.ones(())}, torch.ones(1), None, torch.tensor([1.0, 0, 0])))
    (status,) = monitor.finished(wait=False)
    assert (status.number, status.bad_loss, status.bad_gradient) == (7, True, False)
