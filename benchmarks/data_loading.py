"""Samples per second of the loader, compared with decoding a file for every sample.

python benchmarks/data_loading.py

The images are PNG files of 2040x1404 pixels. In the column "photo", LR is made by `--degradation
photo` instead of bicubic. Decoding needs worker processes; cutting crops from the cache is faster
without them (see `dataloader.new_loader`).
"""

import argparse
import tempfile
import time
from pathlib import Path

import classic
import common
import numpy as np
import torch
from torch.utils.data import DataLoader

from dataloader import TrainDatasetFromFolder, new_loader, workers_of
from degradations import DEGRADATIONS
from utils import cli

BATCH, CROP = 16, 88


def samples_per_second(loader: DataLoader, samples: int) -> float:
    """Return the rate of a loader over about `samples` samples, after its first batch."""
    batches = iter(loader)
    next(batches)
    done = 0
    began = time.perf_counter()
    for lr, _hr in batches:
        done += len(lr)
        if done >= samples:
            break
    return done / (time.perf_counter() - began)


def copy_limit() -> float:
    """Return the samples per second if whole batches of LR and HR were only copied once."""
    size = BATCH * 3 * (CROP**2 + (CROP // 4) ** 2)
    source = np.ones((64, size), np.uint8)
    target = np.empty(size, np.uint8)
    rounds = 2000
    began = time.perf_counter()
    for index in range(rounds):
        np.copyto(target, source[index % 64])
    return rounds * BATCH / (time.perf_counter() - began)


def main(args: argparse.Namespace) -> int:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "images")
        cache = Path(place, "cache")
        common.write_pictures(folder, args.images)

        # Datasets
        crops_per_image = -(-20 * args.samples // args.images)
        began = time.perf_counter()
        ours = TrainDatasetFromFolder(
            folder, CROP, 4, crops_per_image=crops_per_image, cache_folder=cache
        )
        build = time.perf_counter() - began
        photo = TrainDatasetFromFolder(
            folder,
            CROP,
            4,
            crops_per_image=crops_per_image,
            cache_folder=cache,
            degradation=DEGRADATIONS["photo"],
        )
        decoding = classic.TrainDataset(folder, CROP)
        decoding.paths = decoding.paths * (args.samples // args.images + BATCH + 1)

        # Rates
        rows = []
        for workers in (0, 2):
            loader = DataLoader(decoding, BATCH, shuffle=True, num_workers=workers)
            rates = {"classic": samples_per_second(loader, args.samples // 4)}
            for name, dataset, samples in (
                ("ours", ours, 18 * args.samples),
                ("photo", photo, args.samples),
            ):
                loader = new_loader(dataset, BATCH, workers)
                with workers_of(loader):
                    rates[name] = samples_per_second(loader, samples)
            rows.append(
                {
                    "workers": workers,
                    "classic": rates["classic"],
                    "ours": rates["ours"],
                    "ratio": rates["ours"] / rates["classic"],
                    "photo": rates["photo"],
                }
            )
        cache_bytes = sum(path.stat().st_size for path in cache.iterdir())

    result = {
        "ratio": rows[0]["ratio"],
        "limit_fraction": rows[0]["ours"] / copy_limit(),
        "images": args.images,
        "cache_seconds_per_image": build / args.images,
        "cache_bytes_per_hr_pixel": cache_bytes / args.images / (1404 * 2040),
    }
    common.report(
        f"Samples per second, {CROP}x{CROP} crops of 2040x1404 PNG, batch {BATCH}",
        torch.device("cpu"),
        rows,
        result,
        args.json,
    )
    return 0


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = common.get_args_parser("data_loading", __doc__)
    parser.add_argument("--images", type=cli.positive_int, default=8, help="PNG files to make")
    parser.add_argument(
        "--samples", type=cli.positive_int, default=640, help="about how many samples to time"
    )
    return parser


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
