import os

import numpy as np
import pytest
import torch
from conftest import photograph, run, the_error
from PIL import Image

import metrics
from model import Generator
from utils import checkpoint, images


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    checkpoint.save_generator(folder / "x4.pth", Generator(4, 1))
    checkpoint.save_generator(folder / "x2.safetensors", Generator(2, 1))
    return folder


def test_images_and_folders_of_every_mode(tmp_path, weights, astronaut):
    folder = tmp_path / "my pictures"
    folder.mkdir()
    rgb = Image.fromarray(astronaut[:20, :30])
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "photo.jpg")
    rgb.convert("L").save(folder / "gray.png")
    rgb.quantize(16).save(folder / "palette.gif")
    rgb.convert("RGBA").save(folder / "alpha.png")
    rgb.convert("CMYK").save(folder / "cmyk.tif")
    rgb.save(folder / "turned.png", exif=exif)
    Image.fromarray(np.full((1, 1), 40_000, np.uint16)).save(folder / "größe 16 bit.png")
    run("test_image.py", folder, "--weights", weights / "x4.pth", "--device", "cpu")
    sizes = {path.name: Image.open(path).size for path in folder.glob("*_x4.png")}
    assert sizes == {
        **dict.fromkeys(["photo_x4.png", "gray_x4.png", "palette_x4.png", "alpha_x4.png", "cmyk_x4.png"], (120, 80)),
        "turned_x4.png": (80, 120),
        "größe 16 bit_x4.png": (4, 4),
    }
    assert Image.open(folder / "alpha_x4.png").mode == "RGBA" and Image.open(folder / "gray_x4.png").mode == "RGB"
    before = sorted(os.listdir(folder))
    error = the_error(run("test_image.py", folder, "--weights", weights / "x4.pth", status=None))
    assert "exists already; pass --overwrite" in error
    run("test_image.py", folder, "--weights", weights / "x4.pth", "--overwrite")
    assert sorted(os.listdir(folder)) == before  # its own results are not inputs


def test_out_compare_and_another_scale_and_format(tmp_path, weights, astronaut):
    Image.fromarray(astronaut[:20, :30]).save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", "--weights", weights / "x2.safetensors"]
    done = run("test_image.py", *arguments, "--out", tmp_path / "big.webp", "--compare", "--tile", 8)
    assert Image.open(tmp_path / "big.webp").size == (60, 40)
    pair = images.read_picture(tmp_path / "big_compare.png").rgb
    assert np.array_equal(pair[-40:, :60], images.upscale_bicubic(astronaut[:20, :30], 2))
    assert np.array_equal(pair[-40:, -60:], images.read_picture(tmp_path / "big.webp").rgb)
    assert done.stdout.split() == [str(tmp_path / "big.webp"), str(tmp_path / "big_compare.png")]
    run("test_image.py", *arguments, "--out", tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == ["a_x2.png"]


def test_bad_input_is_one_line_and_writes_nothing(tmp_path, weights, astronaut):
    rgb = Image.fromarray(astronaut[:20, :30])
    for name in ("a.png", "a.jpg", "b.png", "b_compare.png"):
        rgb.save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    (tmp_path / "none.png").touch()
    (tmp_path / "empty").mkdir()
    Image.new("1", (2000, 2000)).save(tmp_path / "bomb.png")
    (tmp_path / "w.pth").write_bytes(b"nothing")

    class WouldRun:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"format": "srgan-generator-1", "state_dict": WouldRun()}, tmp_path / "evil.pth")
    a, good = tmp_path / "a.png", ["--weights", weights / "x4.pth"]
    cases = [
        ([tmp_path / "missing.png", *good], "missing.png: no such image"),
        ([tmp_path / "cut.png", *good], "cut.png: cut short"),
        ([tmp_path / "none.png", *good], "none.png: the file is empty"),
        ([tmp_path / "empty", *good], "no image"),
        ([tmp_path / "bomb.png", *good, "--max-pixels", 3_999_999], "more than 3,999,999 pixels"),
        ([a, "--weights", tmp_path / "w.pth"], "w.pth: not read"),
        ([a, "--weights", tmp_path / "evil.pth"], "would run code"),
        ([a, "--weights", tmp_path / "missing.pth"], "missing.pth: no such generator file"),
        ([a, *good, "--out", a], "would be written over"),
        ([tmp_path / "b_compare.png", *good, "--out", tmp_path / "b.png", "--compare", "--overwrite"], "would be written over"),
        ([a, *good, "--out", tmp_path / "x.gif"], "cannot write .gif"),
        ([a, *good, "--out", tmp_path / "w.pth" / "x.png"], "cannot be written"),
        ([a, tmp_path / "b.png", *good, "--out", tmp_path / "c.png"], "name a folder"),
        ([a, tmp_path / "a.jpg", *good], "would both be written"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for arguments, reason in cases:
        assert reason in the_error(run("test_image.py", *arguments, status=None))
    assert sorted(tmp_path.rglob("*")) == before


def test_one_bad_image_of_several_does_not_stop_the_others(tmp_path, weights, astronaut):
    Image.fromarray(astronaut[:20, :30]).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_text("no picture")
    done = run("test_image.py", tmp_path, "--weights", weights / "x4.pth", status=2)
    assert (tmp_path / "b_x4.png").exists()
    assert "a.png: not an image" in done.stderr and "1 of 2 images were not enlarged" in done.stderr


def test_the_weights_in_the_box_beat_bicubic_without_another_step(tmp_path):
    hr = images.crop_to_multiple(photograph("chelsea.png"), 4)
    Image.fromarray(images.downscale(hr, 4)).save(tmp_path / "chelsea.png")
    run("test_image.py", tmp_path / "chelsea.png")
    sr = images.read_picture(tmp_path / "chelsea_x4.png").rgb
    bicubic = images.upscale_bicubic(images.downscale(hr, 4), 4)
    gain_db = [metrics.psnr_ssim_rgb(images.to_tensor(image), images.to_tensor(hr))[0] for image in (sr, bicubic)]
    assert gain_db[0] - gain_db[1] > 0.4
