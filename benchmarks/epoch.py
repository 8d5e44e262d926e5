"""A whole epoch, training and validation, on images of DIV2K's size, compared with the classic loop.

python benchmarks/epoch.py
"""

import tempfile
import time
from pathlib import Path

import classic
import common
import torch
from torch.utils.data import DataLoader

import train
from dataloader import new_loader, open_datasets, workers_of
from utils import cli
from utils.checkpoint import Progress
from utils.device import resolve_device


def classic_epoch(
    training: classic.Training, loader: DataLoader, val_set, out: Path, device
) -> dict[str, float]:
    """Run an epoch of the classic loop; return the seconds of training and of validation."""
    began = time.perf_counter()
    for lr, hr in cli.progress_bar(loader, desc="classic", unit="step"):
        training.step(lr.to(device), hr.to(device))
    trained = time.perf_counter()
    classic.validate(training.generator, val_set, out, device)
    return {"training": trained - began, "validation": time.perf_counter() - trained}


def our_epoch(
    options, models, loader: DataLoader, val_set, out: Path, epoch: int
) -> dict[str, float]:
    """Run an epoch of train.py; return the seconds of training and of validation."""
    progress = Progress(epoch=epoch)
    began = time.perf_counter()
    with cli.StopRequest() as stop:
        train.train_epoch(options, models, loader, progress, stop)
        progress.means()
        trained = time.perf_counter()
        train.validate(
            models.validated, val_set, options.precision, out, options.val_triplets, stop
        )
    return {"training": trained - began, "validation": time.perf_counter() - trained}


def main(args) -> int:
    """Measure and report."""
    device = resolve_device(args.device)
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place, name) for name in ("train", "valid", "out")}
        common.write_pictures(folders["train"], args.images)
        common.write_pictures(folders["valid"], args.val_images, seed=1)
        folders["out"].mkdir()
        words = [
            "--train-dir",
            folders["train"],
            "--val-dir",
            folders["valid"],
            "--out",
            folders["out"],
            "--epochs",
            3,
        ]
        words += [
            "--batch-size",
            args.batch_size,
            "--perceptual-weights",
            "random",
            "--device",
            device.type,
        ]
        options = train.get_args_parser().parse_args(list(map(str, words)))
        train.resolve(options)
        began = time.perf_counter()
        train_set, val_set = open_datasets(options)
        cache_seconds = time.perf_counter() - began
        models = train.Models(options)
        models.loss = train.new_loss(options, device)
        loader = new_loader(
            train_set, options.batch_size, 0, options.workers, pin=device.type == "cuda"
        )
        reference = classic.Training(
            train.new_loss(options, device).to(memory_format=torch.contiguous_format), device
        )
        dataset = classic.TrainDataset(folders["train"], options.crop)
        slow_loader = DataLoader(
            dataset, options.batch_size, shuffle=True, num_workers=4 if device.type == "cuda" else 0
        )
        with workers_of(loader):
            first = our_epoch(options, models, loader, val_set, folders["out"], 1)
            ours = our_epoch(options, models, loader, val_set, folders["out"], 2)
        side = options.crop // 4
        reference.step(
            torch.zeros(2, 3, side, side, device=device),
            torch.zeros(2, 3, 4 * side, 4 * side, device=device),
        )
        slow = classic_epoch(
            reference, slow_loader, classic.ValDataset(folders["valid"]), folders["out"], device
        )
    rows = [
        {
            "epoch": name,
            "training s": times["training"],
            "validation s": times["validation"],
            "whole s": sum(times.values()),
        }
        for name, times in (
            ("classic", slow),
            ("ours, the first", first),
            ("ours, later ones", ours),
        )
    ]
    # The least time for an epoch: the network's passes over the same pixels, at the speed of a matrix product.
    product = common.matrix_product_flops(device, options.precision)
    crop = torch.zeros(1, 3, options.crop, options.crop, device=device)
    lr = torch.zeros(1, 3, options.crop // 4, options.crop // 4, device=device)
    step = (
        common.flops_of(
            lambda: train.adversarial_step(
                models, lr.expand(2, -1, -1, -1), crop.expand(2, -1, -1, -1)
            )
        )
        / 2
    )
    pixel = common.flops_of(lambda: models.generator(lr)) / (options.crop // 4) ** 2
    flops = args.images * step + args.val_images * 510 * 351 * pixel
    result = {
        "ratio": sum(slow.values()) / sum(ours.values()),
        "limit_fraction": flops / product / sum(ours.values()),
        "cache_seconds": cache_seconds,
        "images": args.images,
        "validation_images": args.val_images,
        "batch_size": options.batch_size,
    }
    common.report("Whole epoch on 2040x1404 images", device, rows, result, args.json)
    return 0


def get_args_parser():
    """Return the parser of the command line."""
    parser = common.get_args_parser("epoch", __doc__)
    parser.add_argument(
        "--images", type=cli.positive_int, default=16, help="training images (DIV2K has 800)"
    )
    parser.add_argument(
        "--val-images", type=cli.positive_int, default=2, help="validation images (DIV2K has 100)"
    )
    parser.add_argument("--batch-size", type=cli.positive_int, default=16, help="crops per step")
    return parser


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
