"""What the benchmarks share: the machine's limit, timing in turns, tables and JSON files, and pictures of DIV2K's size."""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from utils import cli, files, pretrained
from utils.device import PRECISIONS, add_options

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
    names = [line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{torch.get_num_threads()} threads of {name} ({capability}), PyTorch {torch.__version__}"
    )


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


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
    works: dict[str, Callable[[], object]], device: torch.device, rounds: int, repeats: int = 1
) -> dict[str, float]:
    """Return the median time of each work, measured in turns so that a slow minute of the machine affects all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in cli.progress_bar(range(rounds), desc="rounds"):
        for name, work in works.items():
            times[name].append(seconds(work, device, repeats))
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_product(device: torch.device, precision: str) -> tuple[Callable[[], object], int]:
    """Return a large matrix product to be timed, and its number of floating-point operations."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=PRECISIONS[precision]) for _ in range(2))
    return lambda: a @ b, 2 * side**3


def matrix_product_flops(device: torch.device, precision: str) -> float:
    """Return the floating-point operations per second of the fastest of several matrix products on this machine."""
    product, flops = matrix_product(device, precision)
    product()
    return flops / min(seconds(product, device) for _ in range(10))


def flops_of(work: Callable[[], object]) -> int:
    """Return the floating-point operations of the convolutions and matrix products in `work`, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def write_pictures(
    folder: Path, count: int, height: int = 1404, width: int = 2040, seed: int = 0
) -> None:
    """Write PNG files with DIV2K's size and roughly its compressibility: smooth shapes with a little noise."""
    rng = np.random.default_rng(seed)
    files.make_folder(folder)
    for index in cli.progress_bar(range(count), desc="making pictures", unit="image"):
        coarse = Image.fromarray(
            rng.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8)
        )
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(
            np.int16
        )
        noisy = (smooth + rng.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:04d}.png", compress_level=6)


def report(
    title: str, device: torch.device, rows: list[dict], result: dict, path: Path | None
) -> None:
    """Print the table, the ratio and the limit; write them as JSON if a path is given."""
    print(f"\n{title}\n{machine(device)}\n")
    print(
        pandas.DataFrame(rows).to_string(
            index=False, float_format=lambda value: f"{value:.4g}", na_rep="-"
        )
    )
    print(
        "\n"
        + "\n".join(
            f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}"
            for name, value in result.items()
        )
    )
    if path is not None:
        files.write_text(
            path, json.dumps({"machine": machine(device), "table": rows, **result}, indent=2) + "\n"
        )
        print(path)
