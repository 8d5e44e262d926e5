"""Run a script of the repository with one fault.

python tests/faulty.py FAULT NUMBER script.py ARGUMENTS

Events are what a run does to its disk (`write`, `flush`, `rename`, `link`) and what it computes
(`work`: a training step, a validation image, a decoded image, an enlarged one). They are counted
from 1. At event NUMBER the process gets SIGKILL, SIGTERM or SIGINT (FAULT `kill`, `stop`,
`interrupt`), or a disk event fails with ENOSPC or EIO (`full`, `broken`; work is then not counted).
NUMBER 0 causes no fault and prints the events.
"""

import errno
import os
import runpy
import signal
import sys
from pathlib import Path

import inference
import metrics
from dataloader import TrainDatasetFromFolder
from utils import files, pixel_cache

FAULT = sys.argv[1]
NUMBER = int(sys.argv[2])
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM, "interrupt": signal.SIGINT}
events: list[str] = []


def event(name: str) -> None:
    """Count an event, and cause the fault if its turn has come."""
    if FAULT not in SIGNALS and name == "work":
        return
    events.append(name)
    if len(events) == NUMBER:
        if FAULT in SIGNALS:
            os.kill(os.getpid(), SIGNALS[FAULT])
            return
        code = {"full": errno.ENOSPC, "broken": errno.EIO}[FAULT]
        raise OSError(code, os.strerror(code))


class CountedFile:
    """A file whose first write is an event, at which half of the data are already on the disk."""

    def __init__(self, file):
        self._file = file
        self._begun = False

    def write(self, data) -> int:
        """Write half, cause the fault if it is due, then write the rest; only the first time."""
        if self._begun:
            return self._file.write(data)
        self._begun = True
        data = memoryview(data).cast("B")
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        event("write")
        self._file.write(data[len(data) // 2 :])
        return len(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


def counted_open(path, mode="r", *args, **kwargs):
    """Open a file as `open` does; one that is written is counted."""
    file = open(path, mode, *args, **kwargs)  # noqa: SIM115 - its caller closes it
    return CountedFile(file) if "+" in mode and "a" not in mode else file


def before(module, name: str, what: str) -> None:
    """Make calls of a function an event."""
    function = getattr(module, name)

    def counted(*args, **kwargs):
        event(what)
        return function(*args, **kwargs)

    setattr(module, name, counted)


files.open = pixel_cache.open = counted_open
before(os, "fsync", "flush")
before(os, "replace", "rename")
before(os, "link", "link")
before(TrainDatasetFromFolder, "batch", "work")
before(metrics, "psnr_ssim_rgb", "work")
before(pixel_cache, "_decode_one", "work")
before(inference, "upscale_picture", "work")
sys.argv = sys.argv[3:]
try:
    runpy.run_path(str(Path(__file__).parent.parent / sys.argv[0]), run_name="__main__")
finally:
    if NUMBER == 0:
        print("events:", *events, file=sys.stderr)
