"""Checks an installed CUDA build without a GPU: it imports, and what has a CPU kernel has one for CUDA."""

from __future__ import annotations

import sys

import torch

import hyenarec
from hyenarec import _C


def main() -> int:
    """Prints what is there; 1 if a kernel is missing."""
    print(f"hyenarec {hyenarec.__version__} in {hyenarec.__file__}")
    print(f"torch {torch.__version__}, extension built for CUDA '{_C.cuda_version}'")
    missing = [] if _C.with_cuda else ["the extension was built without CUDA"]
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if not name.startswith("hyenarec::") or not has_kernel(name, "CPU"):
            continue
        found = has_kernel(name, "CUDA")
        print(f"{name}: {'CUDA kernel registered' if found else 'NO CUDA KERNEL'}")
        missing += [] if found else [name]
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
