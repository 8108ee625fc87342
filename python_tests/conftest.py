"""What all tests share: one thread where a test asks for it, and no GPU that an earlier test has broken."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So that runs in this process and in others add up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Meets a test's errors on the GPU before the next test does.

    After an illegal access CUDA refuses everything that the process asks for. A worker of pytest-xdist ends
    then, so that this test alone is told as having crashed it, and another worker goes on with the rest.
    """
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except torch.AcceleratorError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            raise
        print(f"{item.nodeid} broke the GPU for its process: {error}", flush=True)
        os._exit(1)
