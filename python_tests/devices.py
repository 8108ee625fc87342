"""The devices that tests run on: those that torch sees here."""

from __future__ import annotations

import pytest
import torch

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
