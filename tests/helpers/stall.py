"""`python -m tests.helpers.stall POINT MARKER FILE`: a `raytune train FILE` that stands still at a point for ever.

MARKER appears once the point is reached, so that a test can kill the process right there.
"""

import sys
import time
from pathlib import Path
from typing import Any

from raytune import cli
from raytune.engine import checkpoint, output


def in_the_save(marker: Path) -> None:
    """Every file of the second checkpoint is written; the manifest is not."""
    describe = checkpoint._describe

    def stall(path: Path) -> Any:
        return stand_still(marker) if ".staging-6" in str(path) else describe(path)

    checkpoint._describe = stall


def in_the_publishing(marker: Path) -> None:
    """Half of the finished weights lies in the output folder."""
    copy = output.shutil.copyfile

    def stall(source: Path, target: Path) -> Any:
        if source.suffix != ".safetensors":
            return copy(source, target)
        target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        return stand_still(marker)

    output.shutil.copyfile = stall  # type: ignore[assignment]


POINTS = {"save": in_the_save, "publish": in_the_publishing}


def stand_still(marker: Path) -> Any:
    marker.touch()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    point, where, file = sys.argv[1:]
    POINTS[point](Path(where))
    sys.argv = ["raytune", "train", file]
    cli.main()
