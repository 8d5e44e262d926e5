"""Measure a generator on whole validation images, and draw the pictures bicubic | HR | SR."""

import argparse
import operator
import time
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import nn

import inference
import metrics
from dataloader import ValDatasetFromFolder
from utils import cli, distributed, files, images
from utils.checkpoint import Progress
from utils.device import set_switches


def open_networks(args: argparse.Namespace) -> nn.ModuleDict:
    """Return the networks that train.py's validation measures distances with.

    For Distance, it is the run's own SqueezeNet, or torchvision's if already downloaded: nothing is downloaded for it.
    """
    own_file = args.perceptual == "squeezenet" and args.perceptual_weights not in (
        "imagenet",
        "random",
    )
    return metrics.distance_networks(args.lpips, args.perceptual_weights if own_file else None)


def validate_epoch(
    args: argparse.Namespace,
    generator: nn.Module,
    dataset: ValDatasetFromFolder,
    progress: Progress,
    stop: cli.StopRequest,
    networks: nn.ModuleDict,
) -> dict[str, float] | None:
    """Validate after an epoch of train.py if due: every `--val-every` epochs, and at the end of each phase.

    Returns:
        The scores by CSV column; {} if no validation is due; None if stopped.
    """
    if progress.epoch % args.val_every and progress.epoch not in (
        args.pretrain_epochs,
        args.pretrain_epochs + args.epochs,
    ):
        return {}
    began, folder = time.monotonic(), args.out / "validation" / f"epoch_{progress.epoch:03d}"
    set_switches()
    distributed.share_buffers(generator)
    scores = validate(generator, dataset, args.precision, folder, args.val_triplets, stop, networks)
    progress.validation_seconds = time.monotonic() - began
    return scores


@torch.inference_mode()
def validate(
    generator: nn.Module,
    dataset: ValDatasetFromFolder,
    precision: str,
    folder: Path | None,
    triplets: int,
    stop: cli.StopRequest,
    networks: nn.ModuleDict | None = None,
) -> dict[str, float] | None:
    """Return the mean scores of SR and of bicubic over whole 8-bit images, by CSV column; None if stopped.

    One image is held at a time. The first `triplets` images are drawn as bicubic | HR | SR in `folder`. Bicubic's
    scores, which never change, are kept in `dataset.bicubic_scores` from one call to the next. With several processes, each
    takes its share of the images.

    Args:
        networks: of `metrics.distance_networks`; None: measure no distances.
    """
    device, generator = next(generator.parameters()).device, inference.prepared(generator)
    networks = (networks or nn.ModuleDict()).to(device)
    rows, pictures = {}, {}  # by index
    share = range(distributed.rank(), len(dataset), distributed.world_size())
    for index in cli.progress_bar(share, desc="validation", unit="image"):
        if stop.number:
            rows = None
            break
        name, lr, bicubic, hr = dataset[index]
        sr = inference.upscale(generator, images.to_array(lr), precision=precision)
        result, bicubic_result, target = (
            image.to(device) for image in (images.to_tensor(sr), bicubic, hr)
        )
        if index not in dataset.bicubic_scores:
            psnr, ssim = metrics.psnr_ssim_rgb(bicubic_result, target)
            dataset.bicubic_scores[index] = {"Bicubic_PSNR": psnr, "Bicubic_SSIM": ssim}
        psnr, ssim = metrics.psnr_ssim_rgb(result, target)
        rows[index] = {"PSNR": psnr, "SSIM": ssim, **dataset.bicubic_scores[index]}
        rows[index] |= metrics.beyond_psnr(result, target, generator.upscale, networks)
        if index < triplets and folder is not None:
            pictures[name] = triplet(images.to_array(bicubic), images.to_array(hr), sr, rows[index])
    shares = distributed.gather((rows, pictures))
    if any(rows is None for rows, _ in shares):
        return None
    rows, pictures = (reduce(operator.or_, parts) for parts in zip(*shares))
    for name, picture in pictures.items() if distributed.rank() == 0 else ():
        images.write_picture(files.make_folder(folder) / f"{name}.png", picture)
    return mean_scores([rows[index] for index in sorted(rows)])


def triplet(
    bicubic: np.ndarray, hr: np.ndarray, sr: np.ndarray, scores: dict[str, float]
) -> images.Picture:
    """Place the centres of three pictures (H, W, 3) uint8 side by side, each at most 400x400 pixels, with their PSNR."""
    labels = (f"bicubic {scores['Bicubic_PSNR']:.2f} dB", "HR", f"SR {scores['PSNR']:.2f} dB")
    centres = [images.crop_centre(picture, 400) for picture in (bicubic, hr, sr)]
    return images.Picture(images.side_by_side(zip(labels, centres, strict=True)))


def mean_scores(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the images that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    return {
        name: torch.tensor(values, dtype=torch.float64).mean().item()
        for name, values in columns.items()
    }
