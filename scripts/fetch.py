"""Fetches one file and verifies it: `python3 scripts/fetch.py ADDRESS SHA256 DESTINATION`."""

from __future__ import annotations

import hashlib
import http.client
import sys
import urllib.request
from pathlib import Path

PATIENCE = 10  # seconds without an answer


def fetch(address: str, sha256: str, destination: Path) -> None:
    """Writes what lies at the address to the destination, which exists only complete and verified.

    Raises:
        OSError: the address can't be reached, or the destination can't be written.
        http.client.HTTPException: the answer broke off.
        ValueError: what came has another checksum.
    """
    with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
        content = answer.read()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"its SHA-256 should be {sha256}, got {found}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(destination.name + ".part")
    partial.write_bytes(content)
    partial.replace(destination)


def main() -> int:
    """1, with a line on stderr, if the file did not come."""
    address, sha256, destination = sys.argv[1:]
    try:
        fetch(address, sha256, Path(destination))
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"{address}: {getattr(error, 'reason', error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
