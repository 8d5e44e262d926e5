import os

import corpus
import numpy as np
import pytest
import torch
from conftest import photograph, run, the_error
from PIL import Image, ImageCms, ImageDraw

import inference
import metrics
import test_image
from model import Generator
from utils import generator_file, images
from utils.weights import weights_file


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    generator_file.save(folder / "x4.pth", Generator(4, 1))
    generator_file.save(folder / "x2.safetensors", Generator(2, 1))
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
        "photo_x4.png": (120, 80),
        "gray_x4.png": (120, 80),
        "palette_x4.png": (120, 80),
        "alpha_x4.png": (120, 80),
        "cmyk_x4.png": (120, 80),
        "turned_x4.png": (80, 120),
        "größe 16 bit_x4.png": (4, 4),
    }
    assert Image.open(folder / "alpha_x4.png").mode == "RGBA"
    assert Image.open(folder / "gray_x4.png").mode == "L"
    before = sorted(os.listdir(folder))
    error = the_error(run("test_image.py", folder, "--weights", weights / "x4.pth", status=None))
    assert "already exists; pass --overwrite" in error
    run("test_image.py", folder, "--weights", weights / "x4.pth", "--overwrite")
    assert sorted(os.listdir(folder)) == before  # its own results are not inputs


def test_a_comparison_with_another_generator_has_three_panels(tmp_path, weights, astronaut):
    lr = astronaut[:20, :30]
    Image.fromarray(lr).save(tmp_path / "a.png")
    other = tmp_path / "other.pth"
    generator_file.save(other, Generator(4, 2))
    arguments = [tmp_path / "a.png", "--weights", weights / "x4.pth"]
    arguments += ["--device", "cpu", "--precision", "fp32"]
    run("test_image.py", *arguments, "--compare-with", other)
    panels = images.read_picture(tmp_path / "a_x4_compare.png").rgb
    assert panels.shape[1] == 3 * 120 + 2 * 4
    bicubic, theirs, ours = (panels[-80:, left : left + 120] for left in (0, 124, 248))
    assert np.array_equal(bicubic, images.upscale_bicubic(lr, 4))
    for panel, path in ((theirs, other), (ours, weights / "x4.pth")):
        generator = inference.open_generator(path, torch.device("cpu"))
        assert np.array_equal(panel, inference.upscale(generator, lr))
    assert np.array_equal(ours, images.read_picture(tmp_path / "a_x4.png").rgb)
    arguments += ["--compare-with", weights / "x2.safetensors", "--overwrite"]
    error = the_error(run("test_image.py", *arguments, status=None))
    assert "x2.safetensors: an x2 generator, but" in error and "x4.pth is not" in error


def test_out_compare_and_another_scale_and_format(tmp_path, weights, astronaut):
    Image.fromarray(astronaut[:20, :30]).save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", "--weights", weights / "x2.safetensors"]
    options = ["--out", tmp_path / "big.webp", "--compare", "--tile", 8]
    done = run("test_image.py", *arguments, *options)
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
    (tmp_path / "other").mkdir()
    rgb.save(tmp_path / "other" / "A.png")
    wide = tmp_path / "wide.png"
    Image.new("L", (4101, 1)).save(wide)
    Image.new("1", (2000, 2000)).save(tmp_path / "bomb.png")
    (tmp_path / "w.pth").write_bytes(b"nothing")

    class WouldRun:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"format": "srgan-generator-1", "state_dict": WouldRun()}, tmp_path / "evil.pth")
    a = tmp_path / "a.png"
    good = ["--weights", weights / "x4.pth"]
    over = [tmp_path / "b_compare.png", *good, "--out", tmp_path / "b.png", "--compare"]
    same = [a, tmp_path / "other" / "A.png", *good, "--out", tmp_path / "folder"]
    too_wide = "WEBP holds at most 16383 pixels per side, this is 16404x4"
    no_pair = "srgan_x4.pth holds generator srresnet, upscale 4, blocks 16; name a pair"
    cases = [
        ([tmp_path / "missing.png", *good], "missing.png: no such image"),
        ([tmp_path / "cut.png", *good], "cut.png: cut short"),
        ([tmp_path / "none.png", *good], "none.png: the file is empty"),
        ([tmp_path / "empty", *good], "no image"),
        ([tmp_path / "bomb.png", *good, "--max-pixels", 3_999_999], "more than 3,999,999 pixels"),
        ([a, "--weights", tmp_path / "w.pth"], "w.pth: refused"),
        ([a, "--weights", tmp_path / "evil.pth"], "would run code"),
        ([a, "--weights", tmp_path / "missing.pth"], "missing.pth: no such generator file"),
        ([a, *good, "--texture", 0.5], no_pair),
        ([a, *good, "--texture-weights", "srgan_x4"], "--texture-weights needs --texture T"),
        ([a, "--texture", 1.5], "'1.5' is not a number from 0 to 1"),
        ([a, *good, "--out", a], "would be overwritten"),
        ([*over, "--overwrite"], "would be overwritten"),
        ([a, *good, "--out", tmp_path / "x.gif"], "cannot write .gif"),
        ([a, *good, "--out", tmp_path / "w.pth" / "x.png"], "cannot be written"),
        ([a, tmp_path / "b.png", *good, "--out", tmp_path / "c.png"], "name a folder"),
        (same, "would both be written"),
        ([wide, *good, "--out", tmp_path / "x.webp"], too_wide),
        ([a, *good, "--out", tmp_path / "A.PNG"], "would be overwritten"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for arguments, reason in cases:
        assert reason in the_error(run("test_image.py", *arguments, status=None))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--suffix", "_big/er"], "must not contain / or"),
        (["--suffix", "x" * 51], "exceed 50 bytes"),
        (["--overwrite", "--skip-existing"], "not allowed with"),
    ],
)
def test_invalid_options_are_refused(capsys, options, reason):
    with pytest.raises(SystemExit):
        test_image.get_args_parser().parse_args(["a.png", *options])
    assert reason in capsys.readouterr().err


def test_one_bad_image_of_several_does_not_stop_the_others(tmp_path, weights, astronaut):
    Image.fromarray(astronaut[:20, :30]).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_text("no picture")
    done = run("test_image.py", tmp_path, "--weights", weights / "x4.pth", status=2)
    assert (tmp_path / "b_x4.png").exists()
    assert "a.png: not an image" in done.stderr and "1 of 2 images were not enlarged" in done.stderr


def test_a_folder_is_continued_where_it_stopped(tmp_path, weights, astronaut):
    rgb = Image.fromarray(astronaut[:20, :30])
    for name in ("a.png", "b.png", "c.png"):
        rgb.save(tmp_path / name)
    command = ["test_image.py", tmp_path, "--weights", weights / "x4.pth", "--compare"]
    run(*command)
    (tmp_path / "a_x4.png").write_bytes(b"kept")
    (tmp_path / "b_x4.png").unlink()
    (tmp_path / "c_x4_compare.png").unlink()
    done = run(*command, "--skip-existing")
    assert "1 of 3 images skipped" in done.stdout
    assert (tmp_path / "a_x4.png").read_bytes() == b"kept"
    assert (tmp_path / "b_x4.png").exists() and (tmp_path / "c_x4_compare.png").exists()
    assert "3 of 3 images skipped" in run(*command, "--skip-existing").stdout


def test_subfolders_are_mirrored_and_results_left_out(tmp_path, weights, astronaut):
    rgb = Image.fromarray(astronaut[:8, :8])
    for name in ("a.png", "deep/a.png", "deep/er/b.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        rgb.save(path)
    photos = tmp_path / "photos"
    out = photos / "out"
    options = ["--weights", weights / "x4.pth", "--recursive"]
    run("test_image.py", photos, *options, "--suffix", "", "--out", out)
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert written == ["a.png", "deep/a.png", "deep/er/b.png"]
    run("test_image.py", photos / "deep", *options, "--suffix", "_grün")
    names = {path.name for path in (photos / "deep").rglob("*.*")}
    assert names == {"a.png", "a_grün.png", "b.jpg", "b_grün.png"}
    deep = [photos / "deep/a.png", photos / "deep/er/b.jpg"]
    plan = test_image.plan_outputs([photos / "deep"], None, "_grün", recursive=True)
    assert list(plan) == deep
    # The results lie in the folder that is read
    plan = test_image.plan_outputs([photos], out, "_grün", recursive=True)
    assert list(plan) == [photos / "a.png", *deep]
    assert list(test_image.plan_outputs([photos], out, "")) == [photos / "a.png"]


def test_images_whose_results_would_share_a_name_are_kept_apart(tmp_path, weights, astronaut):
    for name, left in (("a.png", 0), ("A.jpg", 100), ("b.png", 200)):
        Image.fromarray(astronaut[:8, left : left + 8]).save(tmp_path / name)
    run("test_image.py", tmp_path, "--weights", weights / "x4.pth", "--out", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["A_jpg_x4.png", "a_png_x4.png", "b_x4.png"]


def test_left_out_frames_are_reported(tmp_path, weights, astronaut):
    frames = [Image.fromarray(astronaut[top : top + 8, :8]) for top in (0, 100, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    done = run("test_image.py", tmp_path, "--weights", weights / "x4.pth")
    assert done.stderr.splitlines() == [
        f"{tmp_path / 'a.gif'}: 3 frames or pages, only the first is used"
    ]


def test_gray_stays_gray_and_opaque_white_stays_white(tmp_path):
    page = Image.new("L", (48, 24), 255)
    ImageDraw.Draw(page).text((2, 2), "gray Text", fill=0)
    page.save(tmp_path / "text.png")
    page.convert("RGB").save(tmp_path / "rgb.png")
    disc = Image.new("LA", (32, 32), (0, 0))
    ImageDraw.Draw(disc).ellipse((6, 6, 25, 25), fill=(255, 255))
    disc.save(tmp_path / "disc.png")
    disc.convert("RGBA").save(tmp_path / "colour.png")
    options = ["--weights", "srgan_x4", "--precision", "fp32", "--device", "cpu", "--compare"]
    run("test_image.py", tmp_path, *options)
    text = Image.open(tmp_path / "text_x4.png")
    assert text.mode == "L" and np.asarray(text).min() < 30 and np.asarray(text).std() > 40
    assert np.array_equal(np.asarray(text), np.asarray(Image.open(tmp_path / "rgb_x4.png")))
    generator = inference.open_generator(weights_file("srgan_x4"), torch.device("cpu"))
    coloured = inference.upscale(generator, np.asarray(page.convert("RGB"))).astype(int)
    assert np.ptp(coloured, axis=2).max() > 20  # what the network makes of it
    assert np.abs(coloured.mean(2) - np.asarray(text)).max() <= 1
    for name, mode in (("disc_x4.png", "LA"), ("colour_x4.png", "LA")):
        result = Image.open(tmp_path / name)
        assert result.mode == mode and result.getchannel("A").getextrema() == (0, 255)
        white = Image.new("RGBA", result.size, "white")
        on_white = Image.alpha_composite(white, result.convert("RGBA"))
        assert np.asarray(on_white).min() >= 250, name


def test_the_metadata_of_a_photo_are_carried_over(tmp_path, weights, astronaut):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = corpus.described_options("jpg", orientation=6, width=30)
    Image.fromarray(astronaut[:20, :30]).save(tmp_path / "a.jpg", icc_profile=profile, **options)
    arguments = [tmp_path / "a.jpg", "--weights", weights / "x4.pth", "--out"]
    for name in ("b.png", "b.jpg", "b.tif"):
        run("test_image.py", *arguments, tmp_path / name)
        with Image.open(tmp_path / name) as result:
            exif = result.getexif()
            assert result.size == (80, 120) and exif[274] == 1 and exif[271] == "Maker"
            assert exif.get_ifd(34665)[40962] == 80 and b"XMP title" in result.info["xmp"]
            assert result.info["icc_profile"] == profile and round(result.info["dpi"][0]) == 300


def test_texture_blends_two_files_from_one_to_the_other(tmp_path, astronaut):
    Image.fromarray(astronaut[100:124, 200:232]).save(tmp_path / "a.png")
    fixed = [tmp_path / "a.png", "--precision", "fp32", "--device", "cpu", "--out"]
    results = {}
    for name, options in {
        "srresnet_x4": ["--weights", "srresnet_x4"],
        "srgan_x4": ["--weights", "srgan_x4"],
        "0": ["--texture", 0],
        "0.7": ["--texture", 0.7],
        "1": ["--texture", 1],
    }.items():
        run("test_image.py", *fixed, tmp_path / f"{name}.png", *options)
        results[name] = images.read_picture(tmp_path / f"{name}.png").rgb.astype(int)
    assert np.array_equal(results["0"], results["srresnet_x4"])
    assert np.array_equal(results["1"], results["srgan_x4"])
    ends = np.abs(results["srgan_x4"] - results["srresnet_x4"]).mean()
    for end in ("srresnet_x4", "srgan_x4"):
        assert 0.2 * ends < np.abs(results["0.7"] - results[end]).mean() < 0.8 * ends


@pytest.mark.parametrize(
    ("name", "options"), [("lr.jpg", []), ("lr.png", ["--weights", "srresnet_x4"])]
)
def test_a_jpeg_by_default_and_a_clean_picture_by_srresnet_beat_bicubic(tmp_path, name, options):
    hr = images.crop_to_multiple(photograph("coffee.png"), 4)
    Image.fromarray(images.downscale(hr, 4)).save(tmp_path / name)  # JPEG of quality 75
    run("test_image.py", tmp_path / name, *options)
    sr = images.read_picture(tmp_path / "lr_x4.png").rgb
    bicubic = images.upscale_bicubic(images.read_picture(tmp_path / name).rgb, 4)
    scores = [
        metrics.psnr_ssim_rgb(images.to_tensor(image), images.to_tensor(hr))[0]
        for image in (sr, bicubic)
    ]
    assert scores[0] - scores[1] > 0.4
