"""Tests that run MetaWorld and robosuite. Without both of them only `test_simulators` is collected.

`bash scripts/test.sh simulators` installs them and runs these, and those of evaluation.
"""

import importlib.util

INSTALLED = all(map(importlib.util.find_spec, ("metaworld", "robosuite")))
if not INSTALLED:
    collect_ignore = [
        "test_recorder.py",
        "test_rollouts.py",
        "test_sample_droid_generator.py",
        "test_tasks.py",
    ]


def pytest_configure(config):
    if INSTALLED:  # the simulators, numba and MuJoCo's bindings warn about themselves
        config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning")
