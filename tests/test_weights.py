"""Each file in weights/ has the size, checksum and scores that its model card states."""

import functools
import io
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, photograph
from PIL import Image

import inference
import metrics
from dataloader import TestDatasetFromFolder
from utils import files, images, pretrained, weights

CARD = (ROOT / "weights" / "README.md").read_text()
FILES = re.findall(r"^\| `(\w+\.pth)` \|.*\| ([\d,]+) \| (\w{64}) \|$", CARD, re.M)


def test_the_card_lists_every_file():
    listed = sorted(name for name, *_ in FILES)
    assert listed == sorted(path.name for path in (ROOT / "weights").glob("*.pth"))
    assert {path.name for path in (weights.PHOTO, weights.FAITHFUL, weights.TEXTURED)} <= set(
        listed
    )
    assert (
        f"`{weights.PHOTO.name}` | " in CARD
        and "the default of `test_image.py`" in CARD.split(weights.PHOTO.name)[1].split("\n")[0]
    )


@pytest.mark.parametrize(("name", "size", "checksum"), FILES)
def test_a_file_is_the_one_of_the_card(name, size, checksum):
    path = ROOT / "weights" / name
    assert path.stat().st_size == int(size.replace(",", "")) < 4 * 2**20
    assert files.sha256(path) == checksum


@pytest.fixture(scope="module")
def networks(squeezenet_file):
    return metrics.distance_networks(weights=[pretrained.load("squeezenet", str(squeezenet_file))])


@pytest.mark.parametrize("name", [name for name, *_ in FILES])
@torch.inference_mode()
def test_a_file_scores_on_set5_what_the_card_says(name, set5, networks):
    row = re.search(rf"^\| `{name}` \|((?: [\d.]+ \|){{5}}) ([\d.]+) / ([\d.]+) \|$", CARD, re.M)
    beyond = re.search(rf"^\| `{name}`, Set5 \| [\d.]+ \|((?: [\d.]+ \|){{4}})$", CARD, re.M)
    generator = inference.open_generator(ROOT / "weights" / name, torch.device("cpu"))
    scores, textures = [], []
    for _name, lr, hr in TestDatasetFromFolder(set5 / "x4" / "LR", set5 / "x4" / "HR", 4):
        sr = images.to_tensor(inference.upscale(generator, images.to_array(lr)))
        scores.append(metrics.psnr_ssim_y(images.uint8_to_unit(sr), images.uint8_to_unit(hr), 4))
        textures.append(
            [
                metrics.beyond_psnr(sr, hr, 4, networks)[name]
                for name in ("Distance", "Detail", "Colour", "Grid")
            ]
        )
    psnr, ssim = torch.tensor(scores).T
    assert psnr.tolist() == pytest.approx(
        [float(value) for value in re.findall(r"[\d.]+", row[1])], abs=0.01
    )
    assert psnr.mean().item() == pytest.approx(float(row[2]), abs=0.01)
    assert ssim.mean().item() == pytest.approx(float(row[3]), abs=1e-4)
    expected = [float(value) for value in re.findall(r"[\d.]+", beyond[1])]
    assert torch.tensor(textures).mean(0).tolist() == pytest.approx(expected, abs=2e-3)


def scores_on_scikit_images_photographs(name: str) -> list[float]:
    """Mean PSNR on luma of four photographs, from clean LR and from LR saved as JPEG."""
    if name == "bicubic":
        enlarge = functools.partial(images.upscale_bicubic, upscale=4)
    else:
        generator = inference.open_generator(ROOT / "weights" / name, torch.device("cpu"))
        enlarge = functools.partial(inference.upscale, generator)
    clean, compressed = [], []
    for photo in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        hr = images.crop_to_multiple(photograph(photo), 4)
        lr = images.downscale(hr, 4)
        file = io.BytesIO()
        Image.fromarray(lr).save(file, "JPEG", quality=60)
        for scores, small in (clean, lr), (compressed, np.array(Image.open(file))):
            pair = [images.uint8_to_unit(images.to_tensor(image)) for image in (enlarge(small), hr)]
            scores.append(metrics.psnr_ssim_y(*pair, 4)[0].item())
    return [float(np.mean(scores)) for scores in (clean, compressed)]


@pytest.mark.parametrize("name", ["bicubic", *[name for name, *_ in FILES]])
@torch.inference_mode()
def test_a_file_scores_on_scikit_images_photographs_what_the_card_says(name):
    row = re.search(rf"^\| (?:`{name}`|{name}) \| ([\d.]+) \| ([\d.]+) \|$", CARD, re.M)
    expected = [float(value) for value in row.groups()]
    assert scores_on_scikit_images_photographs(name) == pytest.approx(expected, abs=0.02)
