"""Where and how precisely to compute."""

from typing import Literal

Device = Literal["auto", "cpu"]
Precision = Literal["no", "bf16", "fp16"]
