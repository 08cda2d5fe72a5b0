import subprocess
import sys

import pytest
import torch

from depthcut.model.memory import free_memory_bytes


def test_the_free_memory_of_this_machine_is_known() -> None:
    assert free_memory_bytes(torch.device("cpu")) > 10**6


_FAULTS = """
import resource, torch
from depthcut.model.memory import keeping_freed, resident_bytes

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.zeros(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

outside = faults()
with keeping_freed(torch.device("cpu")):
    faults()
    inside = faults()
    held = resident_bytes()
print(outside, inside, held - resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_for_a_while_and_given_back() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True
    )
    outside, inside, given_back = map(int, ran.stdout.split())
    assert outside > 100
    assert inside < outside / 10
    assert given_back > 32 << 20
