"""The line that every benchmark prints first. Imports neither torch nor TensorFlow."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """Name of the processor and number of cores."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores"
