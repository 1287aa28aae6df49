"""The choice of a device."""

import pytest
import torch

from mcr.errors import UserError
from mcr.runs.devices import choose_device, count_gpus


def test_auto_is_a_gpu_if_there_is_one():
    assert choose_device("auto").type == ("cuda" if count_gpus() else "cpu")
    assert choose_device("cpu", local_rank=3) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "abacus"])
def test_a_device_that_cannot_be_used_is_named(name):
    with pytest.raises(UserError, match=f"device={name} cannot be used: "):
        choose_device(name)
