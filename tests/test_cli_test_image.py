import os

import corpus
import numpy as np
import pytest
import torch
from conftest import photograph, run, started_script, the_error
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
    (tmp_path / "clip.MP4").write_bytes(b"\0\0\0\x18ftypmp42")
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
        ([tmp_path / "clip.MP4", *good], "not an image of a known format; test_video.py enlarges"),
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
        ([a, *good, "--out", tmp_path / "x.psd"], "cannot write .psd"),
        ([a, *good, "--out", tmp_path / "x.HEIC"], "cannot write .heic"),
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
    assert (
        "a.png: not an image" in done.stderr
        and "1 of 2 images could not be enlarged" in done.stderr
    )


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


def test_only_results_of_other_images_in_the_folder_are_left_out(tmp_path, capsys):
    names = ["a.jpg", "a_x4.png", "a_x4_x4.png", "a_x4_compare.png", "a_1920x.webp", "a_x.png"]
    names += ["drawing_x4.png", "b.png", "b_png_x2.tif", "b_big.png", "B_x4.png", "deep/a_x4.png"]
    (tmp_path / "deep").mkdir()
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    plan = test_image.plan_outputs([tmp_path], tmp_path / "out", "_big", recursive=True)
    enlarged = {path.relative_to(tmp_path).as_posix() for path in plan}
    assert enlarged == {"a.jpg", "a_x.png", "drawing_x4.png", "b.png", "B_x4.png", "deep/a_x4.png"}
    assert "earlier results, left out (6): a_1920x.webp, ...;" in capsys.readouterr().out
    # A folder of results is one of pictures
    assert list(test_image.plan_outputs([tmp_path / "deep"], None, "_x4")) == [
        tmp_path / "deep/a_x4.png"
    ]


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


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        ("srresnet_x4", "srgan_x4", []),
        ("photo_x4_pixel", "photo_x4", ["--weights", "photo_x4"]),
    ],
)
def test_texture_blends_two_files_from_one_to_the_other(
    tmp_path, astronaut, first, second, options
):
    Image.fromarray(astronaut[100:124, 200:232]).save(tmp_path / "a.png")
    fixed = [tmp_path / "a.png", "--precision", "fp32", "--device", "cpu", "--out"]
    results = {}
    for name, chosen in {
        first: ["--weights", first],
        second: ["--weights", second],
        "0": [*options, "--texture", 0],
        "0.7": [*options, "--texture", 0.7],
        "1": [*options, "--texture", 1],
    }.items():
        run("test_image.py", *fixed, tmp_path / f"{name}.png", *chosen)
        results[name] = images.read_picture(tmp_path / f"{name}.png").rgb.astype(int)
    assert np.array_equal(results["0"], results[first])
    assert np.array_equal(results["1"], results[second])
    ends = np.abs(results[second] - results[first]).mean()
    for end in (first, second):
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


# --- sizes, formats, parts ----------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path, astronaut):
    """A transparent picture of 30x20 pixels."""
    rgba = Image.fromarray(astronaut[100:120, 100:130]).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize((30, 20)))
    rgba.save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [
        (["--outscale", 1.5], "a_x1.5.png", (45, 30)),
        (["--outscale", 2], "a_x2.png", (60, 40)),
        (["--outscale", 6], "a_x6.png", (180, 120)),
        (["--outscale", 0.5], "a_x0.5.png", (15, 10)),
        (["--size", "100x"], "a_100x.png", (100, 67)),
        (["--size", "x50"], "a_x50.png", (75, 50)),
        (["--size", "90x60"], "a_90x60.png", (90, 60)),
        (["--size", "90X61"], "a_90x61.png", (90, 61)),  # rounding
        (["--size", "90x60", "--suffix", "_big"], "a_big.png", (90, 60)),
    ],
)
def test_any_size_comes_from_the_result_by_lanczos(weights, picture, options, name, size):
    words = ["--weights", weights / "x4.pth", "--precision", "fp32", "--overwrite"]
    run("test_image.py", picture, *words)
    full = Image.open(picture.with_name("a_x4.png"))
    done = run("test_image.py", picture, *words, *options, "--compare")
    found = Image.open(picture.with_name(name))
    assert found.size == size and found.mode == "RGBA"
    rgb = full.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(rgb))
    alpha = full.getchannel("A").resize(size, Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(found.getchannel("A")), np.asarray(alpha))
    assert str(picture.with_name(name)) in done.stdout
    compared = Image.open(picture.with_name(name.replace(".png", "_compare.png")))
    assert compared.size == images.side_by_side_size(*size, 2)


def test_sizes_that_cannot_be_are_one_line(weights, picture):
    for options, reason in [
        (["--size", "0x100"], "'0x100' is not WIDTHxHEIGHT in pixels, such as 1920x1080"),
        (["--size", "x"], "'x' is not WIDTHxHEIGHT"),
        (["--size", "-5x5"], "expected one argument"),
        (["--size", "100"], "'100' is not WIDTHxHEIGHT"),
        (
            ["--size", "90x90"],
            "a.png: a size of 90x90 would distort 30x20 pixels; 90x or",
        ),
        (["--size", "1000000x"], "a.png: a result of 1000000x666667 pixels is too large; at most"),
        (["--outscale", 0], "'0' is not a number from 0.01 to 64"),
        (["--outscale", 2, "--size", "9x"], "not allowed with argument"),
        (["--part", "0/4"], "'0/4' is not K/N with K from 1 to N"),
        (["--part", "5/4"], "'5/4' is not K/N"),
        (["--part", "half"], "'half' is not K/N"),
        (["--format", "jpg", "--out", "b.png"], "--out b.png contradicts --format jpg"),
        (["--quality", 80], "--quality 80 is for JPEG, WebP, AVIF and JPEG XL, not for a_x4.png"),
        (["--quality", 0, "--format", "jpg"], "'0' is not a whole number from 1 to 100"),
    ]:
        words = ["test_image.py", picture, "--weights", weights / "x4.pth", *options]
        error = the_error(run(*words, status=2))
        assert reason in error, error
    assert [path.name for path in picture.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["png", "jpg", "webp", "tif"])
def test_a_folder_of_results_has_the_format_that_is_asked_for(weights, picture, name):
    words = ["test_image.py", picture.parent, "--weights", weights / "x4.pth", "--format", name]
    run(*words)
    (result,) = picture.parent.glob("a_x4.*")
    expected = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF"}[name]
    assert result.suffix == f".{name}" and Image.open(result).format == expected
    before = result.read_bytes()
    run(*words, "--overwrite")  # its own result is no input
    assert result.read_bytes() == before
    assert sorted(path.name for path in picture.parent.iterdir()) == ["a.png", f"a_x4.{name}"]
    if name in ("jpg", "webp"):
        run(*words, "--overwrite", "--quality", 20)
        assert result.stat().st_size < len(before)
        assert Image.open(result).size == (120, 80)


def test_an_ensemble_is_the_mean_over_eight_orientations(astronaut):
    path = weights_file("srresnet_x4")
    engine = inference.TorchEngine(inference.open_generator(path, torch.device("cpu")))
    lr = astronaut[100:117, 60:89]
    expected = np.zeros((68, 116, 3))
    for turns in range(4):
        for flip in (1, -1):
            turned = np.ascontiguousarray(np.rot90(lr, turns)[:, ::flip])
            sr = inference.upscale(engine, turned)
            expected += np.rot90(sr[:, ::flip], -turns) / 8
    ensemble = inference.Ensemble(engine)
    whole = inference.upscale(ensemble, lr, tile=0)
    assert np.abs(whole - expected).max() <= 0.5
    tiles = inference.upscale(ensemble, lr, tile=16)
    assert np.abs(tiles.astype(int) - whole).max() <= 1
    turned = inference.upscale(ensemble, np.ascontiguousarray(np.rot90(lr)))
    assert np.abs(np.rot90(whole.astype(int)) - turned).max() <= 1


def test_ensemble_of_the_command_line(picture):
    words = ["test_image.py", picture, "--weights", "srresnet_x4", "--precision", "fp32"]
    run(*words)
    run(*words, "--ensemble", "--suffix", "_mean")
    single, mean = (
        np.asarray(Image.open(picture.with_name(name)).convert("RGB")).astype(int)
        for name in ("a_x4.png", "a_mean.png")
    )
    assert 0 < np.abs(single - mean).max() < 60 and np.abs(single - mean).mean() < 2


def test_parts_that_are_killed_and_started_again_give_what_one_run_gives(
    tmp_path, weights, astronaut
):
    """Forty pictures, four parts, each killed at random; then three parts finish."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(astronaut[number : number + 12, :16]).save(folder / f"{number:02d}.png")
    words = ["--weights", weights / "x4.pth", "--precision", "fp32"]
    run("test_image.py", folder, *words, "--out", tmp_path / "whole")
    out = tmp_path / "parts"
    rng = np.random.default_rng(1)
    for number in range(1, 5):
        options = [*words, "--out", out, "--part", f"{number}/4"]
        event = int(rng.integers(5, 40))
        faulty = ["tests/faulty.py", "kill", event, "test_image.py", folder, *options]
        assert started_script(*faulty)().returncode == -9
    finished = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert 0 < len(finished) < 40
    for number in range(1, 4):
        run(
            "test_image.py",
            folder,
            *words,
            "--out",
            out,
            "--part",
            f"{number}/3",
            "--skip-existing",
        )
    results = {path.name: path.read_bytes() for path in out.glob("*.png")}
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.png")}
    assert results == expected and len(results) == 40
    assert finished.items() <= results.items()


@pytest.mark.parametrize(
    "variables", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")]
)
def test_processes_of_torchrun_or_srun_share_a_folder(tmp_path, weights, astronaut, variables):
    for number in range(5):
        Image.fromarray(astronaut[:8, :9]).save(tmp_path / f"{number}.png")
    made = []
    for rank in range(3):
        environment = dict(zip(variables, (rank, 3)))
        words = ["test_image.py", tmp_path, "--weights", weights / "x4.pth"]
        done = started_script(*words, environment=environment)()
        assert done.returncode == 0, done.stderr
        made.append(sorted(path.name for path in tmp_path.glob("*_x4.png")))
    assert made[0] == ["0_x4.png", "3_x4.png"]
    assert made[1] == ["0_x4.png", "1_x4.png", "3_x4.png", "4_x4.png"]
    assert len(made[2]) == 5
    words = [tmp_path, "--weights", weights / "x4.pth", "--skip-existing", "--part", "7/9"]
    assert "part 7/9: 0 of 5 images" in run("test_image.py", *words).stdout


def test_what_resembles_a_result_of_another_format_is_enlarged(weights, picture):
    Image.open(picture).convert("RGB").save(picture.with_name("scan_x4.jpg"))
    run("test_image.py", picture.parent, "--weights", weights / "x4.pth")
    names = sorted(path.name for path in picture.parent.glob("*.png"))
    assert names == ["a.png", "a_x4.png", "scan_x4_x4.png"]


def test_variables_of_torchrun_that_make_no_sense_are_one_line(weights, picture):
    words = ["test_image.py", picture, "--weights", weights / "x4.pth"]
    for rank in ("x", "7"):
        done = started_script(*words, environment={"RANK": rank, "WORLD_SIZE": 2})()
        assert f"RANK={rank}, WORLD_SIZE=2: not a process of several" in the_error(done)
