"""Each file in weights/ has the size, checksum and scores that its model card states."""

import re

import pytest
import torch
from conftest import ROOT

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
