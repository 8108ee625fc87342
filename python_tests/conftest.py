"""What all tests share: a GPU that a test has broken is not left to the tests after it."""

from __future__ import annotations

import os

import pytest
import torch


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
