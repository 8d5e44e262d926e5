"""A whole epoch, training and validation, on images of DIV2K's size, and the same the classic way.

python benchmarks/epoch.py
"""

import argparse
import tempfile
import time
from pathlib import Path

import classic
import common
import torch
from torch.utils.data import DataLoader

import train
from dataloader import ValDatasetFromFolder, new_loader, workers_of
from utils import cli
from utils.checkpoint import Progress
from utils.device import resolve_device
from validation import validate


def classic_epoch(
    training: classic.Training,
    loader: DataLoader,
    val_set: classic.ValDataset,
    out: Path,
    device: torch.device,
) -> dict[str, float]:
    """Run an epoch of the classic loop; return the seconds of training and of validation."""
    began = time.perf_counter()
    for lr, hr in cli.progress_bar(loader, desc="classic", unit="step"):
        training.step(lr.to(device), hr.to(device))
    trained = time.perf_counter()
    classic.validate(training.generator, val_set, out, device)
    return {"training": trained - began, "validation": time.perf_counter() - trained}


def our_epoch(
    options: argparse.Namespace,
    models: train.Models,
    loader: DataLoader,
    val_set: ValDatasetFromFolder,
    out: Path,
    epoch: int,
) -> dict[str, float]:
    """Run an epoch of train.py; return the seconds of training and of validation."""
    progress = Progress(epoch=epoch)
    began = time.perf_counter()
    with cli.StopRequest() as stop:
        train.train_epoch(options, models, loader, progress, stop)
        progress.means()  # waits for the device
        trained = time.perf_counter()
        triplets = options.val_triplets
        validate(models.output_generator, val_set, options.precision, out, triplets, stop)
    return {"training": trained - began, "validation": time.perf_counter() - trained}


def least_flops(
    options: argparse.Namespace, models: train.Models, training_images: int, val_images: int
) -> float:
    """Return the floating-point operations of the networks' passes in an epoch."""
    side = options.crop // 4
    lr = torch.zeros(2, 3, side, side, device=models.device)
    hr = torch.zeros(2, 3, options.crop, options.crop, device=models.device)
    step = common.flops_of(lambda: train.adversarial_step(models, lr, hr)) / len(lr)
    pixel = common.flops_of(lambda: models.generator(lr[:1])) / side**2
    return training_images * step + val_images * 510 * 351 * pixel


def main(args: argparse.Namespace) -> int:
    """Measure and report."""
    device = resolve_device(args.device)
    with tempfile.TemporaryDirectory() as place:
        # Pictures
        train_dir = Path(place, "train")
        val_dir = Path(place, "valid")
        out = Path(place, "out")
        common.write_pictures(train_dir, args.images)
        common.write_pictures(val_dir, args.val_images, seed=1)
        out.mkdir()

        # Ours
        words = ["--train-dir", str(train_dir), "--val-dir", str(val_dir), "--out", str(out)]
        words += ["--epochs", "3", "--batch-size", str(args.batch_size)]
        words += ["--perceptual-weights", "random", "--device", device.type]
        options = train.get_args_parser().parse_args(words)
        models = common.new_models(options)
        began = time.perf_counter()
        train_set, val_set = train.open_datasets(options)
        cache_seconds = time.perf_counter() - began
        on_gpu = device.type == "cuda"
        loader = new_loader(train_set, options.batch_size, options.workers, pin=on_gpu)
        with workers_of(loader):
            first = our_epoch(options, models, loader, val_set, out, 1)
            ours = our_epoch(options, models, loader, val_set, out, 2)

        # The classic way
        reference = classic.Training(common.new_loss(options), device)
        side = options.crop // 4
        warm_up_lr = torch.zeros(2, 3, side, side, device=device)
        warm_up_hr = torch.zeros(2, 3, 4 * side, 4 * side, device=device)
        reference.step(warm_up_lr, warm_up_hr)
        classic_loader = DataLoader(
            classic.TrainDataset(train_dir, options.crop),
            options.batch_size,
            shuffle=True,
            num_workers=4 if on_gpu else 0,
        )
        classic_val_set = classic.ValDataset(val_dir)
        slow = classic_epoch(reference, classic_loader, classic_val_set, out, device)

    # Compare
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
    flops = least_flops(options, models, args.images, args.val_images)
    limit_seconds = flops / common.limit_flops(device, options.precision)
    result = {
        "ratio": sum(slow.values()) / sum(ours.values()),
        "limit_fraction": limit_seconds / sum(ours.values()),
        "cache_seconds": cache_seconds,
        "images": args.images,
        "validation_images": args.val_images,
        "batch_size": options.batch_size,
    }
    common.report("Whole epoch on 2040x1404 images", device, rows, result, args.json)
    return 0


def get_args_parser() -> argparse.ArgumentParser:
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
