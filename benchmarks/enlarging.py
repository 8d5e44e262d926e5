"""Time and peak memory of enlarging, whole and in tiles, compared with the plain eager generator.

The images have 510x340 and 2000x1500 pixels.

python benchmarks/enlarging.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import classic
import common
import numpy as np
import torch

import inference
from utils import cli, generator_file, images, weights
from utils.device import resolve_device, resolve_precision

SMALL, LARGE = (340, 510), (1500, 2000)  # LR height and width
TILE = 464  # of the large image: the default if there is plenty of memory
LARGE_NEEDS = 45 * 2**30  # bytes that the eager generator needs for the large image


def image_of(height: int, width: int) -> np.ndarray:
    """Return an LR image with the statistics of a picture rather than of noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return images.resize_bicubic(coarse, height, width)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process on the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(
    way: str, size: tuple[int, int], device: torch.device, precision: str, repeats: int
) -> dict[str, Any]:
    """Enlarge in one way, and write the result as <way>.npy.

    Returns:
        The seconds of the fastest repeat, and the peak memory in bytes beyond that at the start.
    """
    generator = inference.open_generator(weights.FAITHFUL, device)
    lr = image_of(*size)
    if way == "eager":
        plain = classic.new_generator(generator.architecture["blocks"])
        plain.load_state_dict(generator_file.load(weights.FAITHFUL).state_dict())
        plain = plain.to(device).eval()

        @torch.inference_mode()
        def work() -> np.ndarray:
            signed = images.uint8_to_signed(images.to_tensor(lr).to(device)).contiguous()
            return images.to_array(images.signed_to_uint8(plain(signed)))

    else:
        tile = {"whole": 0, "tiles": TILE if size == LARGE else None}[way]

        def work() -> np.ndarray:
            return inference.upscale(generator, lr, tile, precision)

    before = peak_bytes(device)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        sr = work()
        times.append(time.perf_counter() - began)
    measured = {"seconds": min(times), "bytes": peak_bytes(device) - before}
    np.save(f"{way}.npy", sr)
    return measured


def in_a_process(
    way: str, size: tuple[int, int], args: argparse.Namespace, repeats: int, folder: str
) -> dict[str, Any]:
    """Measure in a separate process, which has its own memory peak."""
    words = [sys.executable, __file__, "--device", args.device, "--precision", args.precision]
    words += ["--measure", json.dumps([way, size, repeats])]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise cli.RunError(f"{way} of {size} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(args: argparse.Namespace) -> int:
    """Measure and report."""
    device = resolve_device(args.device)
    precision = resolve_precision(args.precision, device)
    if args.measure:  # in a process of `in_a_process`
        way, (height, width), repeats = json.loads(args.measure)
        print(json.dumps(measure(way, (height, width), device, precision, repeats)))
        return 0

    # Measure
    generator = generator_file.load(weights.FAITHFUL)
    one_tile = (TILE + 2 * generator.halo,) * 2
    cases = [
        ("eager", SMALL, 2),
        ("whole", SMALL, 2),
        ("tiles", SMALL, 2),
        ("whole", one_tile, 1),
        ("tiles", LARGE, 1),
    ]
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > LARGE_NEEDS:
        cases.append(("eager", LARGE, 1))
    rows: list[dict[str, Any]] = []
    found: dict[tuple[str, tuple[int, int]], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way, size, repeats in cli.progress_bar(cases, desc="cases"):
            measured = in_a_process(way, size, args, repeats, folder)
            found[way, size] = measured
            if size == SMALL:
                measured["sr"] = np.load(f"{folder}/{way}.npy").astype(np.int16)
            values = {"seconds": measured["seconds"], "GB": measured["bytes"] / 1e9}
            rows.append({"LR": f"{size[1]}x{size[0]}", "way": way, **values})
    pixel_flops = common.flops_of(lambda: generator(torch.zeros(1, 3, 32, 32))) / 32**2
    flops = pixel_flops * SMALL[0] * SMALL[1]
    limit_seconds = flops / common.matrix_product_flops(device, precision)

    # Compare
    default = found["tiles", SMALL]
    levels = np.abs(default["sr"] - found["eager", SMALL]["sr"])
    extra = found["tiles", LARGE]["bytes"] - found["whole", one_tile]["bytes"]
    result = {
        "ratio": found["eager", SMALL]["seconds"] / default["seconds"],
        "limit_fraction": limit_seconds / default["seconds"],
        "precision": precision,
        "within_one_level": float((levels <= 1).mean()),
        "bytes_per_output_pixel_beyond_a_tile": extra / (16 * LARGE[0] * LARGE[1]),
    }
    common.report("Enlarging by weights/srresnet_x4.pth", device, rows, result, args.json)
    return 0


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = common.get_args_parser("enlarging", __doc__)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
