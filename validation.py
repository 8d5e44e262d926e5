"""Measure a generator on whole validation images, and draw the pictures bicubic | HR | SR."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import inference
import metrics
from dataloader import ValDatasetFromFolder
from networks import GeneratorNetwork
from utils import cli, distributed, files, images


@torch.inference_mode()
def validate(
    generator: GeneratorNetwork,
    dataset: ValDatasetFromFolder,
    precision: str,
    folder: Path | None,
    triplets: int,
    stop: cli.StopRequest,
    distances: nn.ModuleDict | None = None,
) -> dict[str, float] | None:
    """Return the mean scores of SR and of bicubic over whole 8-bit images, by CSV column.

    One image is held at a time. Bicubic's scores, which never change, are kept in
    `dataset.bicubic_scores` from one call to the next. With several processes, each takes its share
    of the images.

    Args:
        generator: in any mode, which is not changed.
        dataset: the images.
        precision: fp32, bf16 or fp16; bf16 becomes fp32 if the generator avoids it.
        folder: where the first `triplets` images are drawn as bicubic | HR | SR; None: nowhere.
        triplets: how many.
        stop: ends the validation early.
        distances: of `metrics.distance_networks`; None: measure none.

    Returns:
        The scores, or None if stopped.
    """
    device = next(generator.parameters()).device
    generator = inference.prepared(generator)
    if precision == "bf16" and getattr(generator, "avoid_bf16", False):
        precision = "fp32"
    distances = (distances or nn.ModuleDict()).to(device)
    scores: dict[int, dict[str, float]] = {}  # by index, as the pictures
    pictures: dict[int, images.Picture] = {}
    share = range(distributed.rank(), len(dataset), distributed.world_size())
    for index in cli.progress_bar(share, desc="validation", unit="image"):
        if stop.number:
            break

        # Enlarge
        _, lr, bicubic, hr = dataset[index]
        sr = inference.upscale(generator, images.to_array(lr), precision=precision)

        # Measure
        result = images.to_tensor(sr).to(device)
        baseline = bicubic.to(device)
        target = hr.to(device)
        if index not in dataset.bicubic_scores:
            psnr, ssim = metrics.psnr_ssim_rgb(baseline, target)
            dataset.bicubic_scores[index] = {"Bicubic_PSNR": psnr, "Bicubic_SSIM": ssim}
        psnr, ssim = metrics.psnr_ssim_rgb(result, target)
        scores[index] = {"PSNR": psnr, "SSIM": ssim, **dataset.bicubic_scores[index]}
        scores[index] |= metrics.beyond_psnr(result, target, generator.upscale, distances)

        # Draw
        if index < triplets and folder is not None:
            pictures[index] = triplet(
                images.to_array(bicubic), images.to_array(hr), sr, scores[index]
            )

    # Collect what the processes have
    finished = len(scores) == len(share)
    shares = distributed.gather((finished, scores, pictures))
    if not all(finished for finished, _, _ in shares):
        return None
    for _, other_scores, other_pictures in shares:
        scores |= other_scores
        pictures |= other_pictures
    if distributed.rank() == 0 and folder is not None:
        for index, picture in pictures.items():
            path = files.make_folder(folder) / f"{dataset.names[index]}.png"
            images.write_picture(path, picture)
    return mean_scores([scores[index] for index in sorted(scores)])


def triplet(
    bicubic: np.ndarray, hr: np.ndarray, sr: np.ndarray, scores: dict[str, float]
) -> images.Picture:
    """Place the centres of three pictures (H, W, 3) uint8 side by side, labelled with PSNR.

    Each is at most 400x400 pixels.
    """
    labels = (f"bicubic {scores['Bicubic_PSNR']:.2f} dB", "HR", f"SR {scores['PSNR']:.2f} dB")
    centres = [images.crop_centre(picture, 400) for picture in (bicubic, hr, sr)]
    return images.Picture(images.side_by_side(zip(labels, centres, strict=True)))


def mean_scores(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the images that have it."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {
        name: torch.tensor(values, dtype=torch.float64).mean().item()
        for name, values in columns.items()
    }
