"""``python -m tests.golden [FOLDER ...]``: hold the library to golden files, one line for each."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch

from tests.golden.core import GOLDEN, check, files_in, implemented_folders


def main() -> int:
    """Exit code 0, 1 (a file failed) or 2 (bad input)."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path, help="default: what is implemented")
    folders = parser.parse_args().folders or implemented_folders()
    if not folders:
        parser.error(f"no golden folders in {GOLDEN}; name one")
    for folder in folders:
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    torch.set_num_threads(1)
    counts = Counter()
    for folder in folders:
        for path in files_in(folder):
            verdict = check(path)
            counts[verdict.status] += 1
            error = "-" if verdict.error is None else f"{verdict.error:.1e}"
            print(f"{verdict.status:<12}{error:<9}{path}  {verdict.detail}".rstrip(), flush=True)
    print(f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['UNSUPPORTED']} unsupported")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
