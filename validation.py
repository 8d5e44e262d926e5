"""The figures of a generator over whole validation images, and the pictures bicubic | HR | SR."""

import operator
from functools import reduce
from pathlib import Path

import torch
from torch import nn

import inference
import metrics
from dataloader import ValDatasetFromFolder
from utils import cli, distributed, files, images


@torch.inference_mode()
def validate(
    generator: nn.Module,
    dataset: ValDatasetFromFolder,
    precision: str,
    bicubic_scores: dict[int, tuple[float, float]],
    folder: Path | None,
    triplets: int,
    stop: cli.StopRequest,
    lpips: metrics.LPIPS | None = None,
) -> dict[str, float] | None:
    """Return the mean PSNR and SSIM of SR and of bicubic over whole 8-bit images, one held at a time; None when stopped.

    The first `triplets` images are drawn as bicubic | HR | SR in `folder`. `bicubic_scores` keeps bicubic's own figures,
    which never change, from one call to the next. With `lpips`, its mean is returned too. Of several processes each
    takes its share of the images.
    """
    device = next(generator.parameters()).device
    was_training = generator.training
    generator.eval()
    scores, distances, pictures = {}, {}, {}
    share = range(distributed.rank(), len(dataset), distributed.world_size())
    try:
        for index in cli.progress_bar(share, desc="validation", unit="image"):
            if stop.number:
                scores = None
                break
            name, lr, bicubic, hr = dataset[index]
            sr = inference.upscale(generator, images.to_array(lr), precision=precision)
            target = hr.to(device)
            if index not in bicubic_scores:
                bicubic_scores[index] = metrics.psnr_ssim_rgb(bicubic.to(device), target)
            result = images.to_tensor(sr).to(device)
            scores[index] = (*metrics.psnr_ssim_rgb(result, target), *bicubic_scores[index])
            if lpips is not None and min(target.shape[-2:]) >= metrics.LPIPS_LEAST_SIDE:
                distances[index] = lpips(images.uint8_to_signed(result), images.uint8_to_signed(target)).item()
            if index < triplets and folder is not None:
                shown = zip((images.to_array(bicubic), images.to_array(hr), sr), ("bicubic {2:.2f} dB", "HR", "SR {0:.2f} dB"))
                row = [(label.format(*scores[index]), images.crop_centre(picture, 400)) for picture, label in shown]
                pictures[name] = images.Picture(images.side_by_side(row))
    finally:
        generator.train(was_training)
    shares = distributed.gather((scores, distances, pictures))
    if any(scores is None for scores, *_ in shares):
        return None
    scores, distances, pictures = (reduce(operator.or_, parts) for parts in zip(*shares))
    for name, picture in pictures.items() if distributed.rank() == 0 else ():
        images.write_picture(files.make_folder(folder) / f"{name}.png", picture)
    means = torch.tensor([scores[index] for index in sorted(scores)], dtype=torch.float64).mean(0).tolist()
    distance = {"LPIPS": sum(distances.values()) / len(distances)} if distances else {}
    return dict(zip(("PSNR", "SSIM", "Bicubic_PSNR", "Bicubic_SSIM"), means)) | distance
