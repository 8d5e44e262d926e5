"""What the benchmarks share: the machine's limit, timing in turns, tables, pictures to work on."""

import argparse
import contextlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import train
from generator_loss_functions import GeneratorLoss
from utils import cli, files, pretrained
from utils.device import DTYPES
from utils.machine import add_options

pretrained.import_torchvision()


def get_args_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser with the options of every benchmark."""
    parser = cli.ArgumentParser(prog=f"benchmarks/{name}.py", description=description)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    add_options(parser)
    return parser


def machine(device: torch.device) -> str:
    """Return what was measured on: the processor or the GPU, its threads, PyTorch's version."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":")[1].strip()
    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{threads} threads of {name} ({capability}), PyTorch {torch.__version__}"


def new_loss(options: argparse.Namespace) -> GeneratorLoss:
    """Return the generator's loss of train.py's options."""
    return train.new_loss(options, train.load_perceptual(options))


def new_models(options: argparse.Namespace) -> train.Models:
    """Resolve train.py's options, and return the networks and the loss of its adversarial step."""
    train.options.resolve(options)
    models = train.Models(options)
    models.loss = new_loss(options).to(models.device)
    return models


def wait(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Return the mean time of `work` over the repeats."""
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - began) / repeats


def in_turns(
    works: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, repeats: int = 1
) -> dict[str, float]:
    """Return the median time of each work in seconds.

    They are measured in turns, so that a slow minute of the machine affects all.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in cli.progress_bar(range(rounds), desc="rounds"):
        for name, work in works.items():
            times[name].append(seconds(work, device, repeats))
    return {name: statistics.median(values) for name, values in times.items()}


def limit(device: torch.device, precision: str) -> tuple[Callable[[], object], int]:
    """Return what the machine does fastest, and its number of floating-point operations.

    On a GPU, that is a large matrix product; on a CPU, the generator's most frequent layer, a 3x3
    convolution from 64 to 64 channels.
    """
    dtype = DTYPES[precision]
    if device.type == "cuda":
        side = 8192
        a = torch.randn(side, side, device=device, dtype=dtype)
        b = torch.randn(side, side, device=device, dtype=dtype)
        return lambda: a @ b, 2 * side**3
    side = 256
    features = torch.randn(1, 64, side, side, dtype=dtype)
    features = features.contiguous(memory_format=torch.channels_last)
    kernels = torch.randn(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    flops = 2 * 9 * 64 * 64 * side**2
    return lambda: torch.nn.functional.conv2d(features, kernels, padding=1), flops


def limit_flops(device: torch.device, precision: str) -> float:
    """Return the operations per second of `limit`, the fastest of ten times."""
    work, flops = limit(device, precision)
    work()
    return flops / min(seconds(work, device) for _ in range(10))


def _uncompiled() -> contextlib.AbstractContextManager[None]:
    # A function first called under a counter would never be compiled
    return torch.compiler.set_stance("force_eager")


def flops_of(work: Callable[[], object]) -> int:
    """Return how many floating-point operations PyTorch counts in `work`.

    It counts those of convolutions and matrix products.
    """
    with _uncompiled(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class _OperatorCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func.namespace == "aten" and not func.is_view
        return func(*args, **(kwargs or {}))


def operators_of(work: Callable[[], object]) -> int:
    """Return how many operators PyTorch dispatches in uncompiled `work`, without views.

    On a GPU, nearly each of them launches a kernel.
    """
    with _uncompiled(), _OperatorCounter() as counter:
        work()
    return counter.count


def write_pictures(
    folder: Path, count: int, height: int = 1404, width: int = 2040, seed: int = 0
) -> None:
    """Write PNG files with DIV2K's size and about its compressibility: smooth, with some noise."""
    rng = np.random.default_rng(seed)
    files.make_folder(folder)
    for index in cli.progress_bar(range(count), desc="making pictures", unit="image"):
        coarse = rng.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = rng.integers(-6, 7, (height, width, 3))
        noisy = (np.asarray(smooth).astype(np.int16) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:04d}.png", compress_level=6)


def report(
    title: str,
    device: torch.device,
    rows: list[dict[str, Any]],
    result: dict[str, Any],
    path: Path | None,
) -> None:
    """Print the table and the result; write them as JSON if a path is given."""
    print(f"\n{title}\n{machine(device)}\n")
    table = pandas.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-"))
    print()
    for name, value in result.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    if path is not None:
        content = {"machine": machine(device), "table": rows, **result}
        files.write_text(path, json.dumps(content, indent=2) + "\n")
        print(path)
