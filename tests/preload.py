"""What the server of `conftest.run` imports before it forks, and how a fork runs a script."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import matplotlib  # noqa: F401
import torch

import export_model  # noqa: F401
import plot_statistics  # noqa: F401
import prepare_data  # noqa: F401
import test_benchmark  # noqa: F401
import test_image  # noqa: F401
import train  # noqa: F401
from utils import pretrained

pretrained.import_torchvision()


def run_script(
    arguments: list[str], streams: tuple[Path, Path], cwd: str, environment: dict[str, str]
) -> None:
    """Run a script of the repository as its own `__main__`, and write its output to files.

    It is here and not in conftest.py, because a fork imports the module of the function that it
    runs, and importing pytest takes longer than many a script.
    """
    os.setsid()
    # A server's forks would start a server of their own, which imports PyTorch for every worker
    multiprocessing.set_start_method(None, force=True)
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    sys.argv = arguments
    runpy.run_path(str(Path(__file__).parent.parent / arguments[0]), run_name="__main__")
