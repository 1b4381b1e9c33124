"""Fetch the vendored files of the web page with `npm pack`, and compare them with what is in the tree.

Run: python tests/serve/browser/vendor.py
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "src/kandinsky/serve/page/vendor"


def main() -> int:
    """Write what differs; the exit code is 1 if a hash is not the one that is written down."""
    wrong = 0
    for name, entry in tomllib.loads((FOLDER / "THIRD_PARTY.toml").read_text()).items():
        with tempfile.TemporaryDirectory() as folder:
            spec = f"{entry['package']}@{entry['version']}"
            packed = subprocess.run(
                ["npm", "pack", "--silent", spec], cwd=folder, check=True, capture_output=True, text=True
            )
            with tarfile.open(Path(folder) / packed.stdout.split()[-1]) as archive:
                member = archive.extractfile(f"package/{entry['path']}")
                assert member is not None
                data = member.read()
        found = hashlib.sha256(data).hexdigest()
        (FOLDER / name).write_bytes(data)
        wrong += found != entry["sha256"]
        print(f"{'ok' if found == entry['sha256'] else 'CHANGED'} {name} {spec} sha256 {found}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
