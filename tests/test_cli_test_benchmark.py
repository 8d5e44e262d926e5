from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from conftest import run, the_error
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from test_cli_train import slice_of_vgg19

import metrics
from model import Generator
from utils import generator_file, images, pretrained


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """An empty hub folder and a proxy that does not exist, so that no test downloads weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def table_of(out: Path) -> pandas.DataFrame:
    return pandas.read_csv(out / "benchmark.csv").set_index("Image")


def test_the_papers_benchmark(set5, tmp_path):
    out = tmp_path / "out"
    folders = ["--hr", set5 / "x4" / "HR", "--lr", set5 / "x4" / "LR", "--out", out]
    done = run("test_benchmark.py", *folders)
    table = table_of(out)
    mean = table.loc["mean"]
    assert mean["Bicubic_Y_PSNR"] == pytest.approx(28.43, abs=0.02)
    assert mean["Bicubic_Y_SSIM"] == pytest.approx(0.8111, abs=1e-3)
    bicubic = table["Bicubic_Y_PSNR"].tolist()[:5]
    assert bicubic == pytest.approx([31.78, 30.18, 22.10, 31.61, 26.47], abs=0.02)
    assert mean["SR_Y_PSNR"] > 30.5
    assert mean["SR_Y_PSNR"] == pytest.approx(table["SR_Y_PSNR"].iloc[:5].mean(), abs=1e-3)
    assert "28.43" in done.stdout
    assert not any("LPIPS" in column for column in table.columns)
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == [f"img_00{i}_x4.png" for i in range(1, 6)]


def test_hr_alone_and_another_scale(photos, tmp_path):
    generator_file.save(tmp_path / "x3.pth", Generator(3, 1))
    arguments = ["--hr", photos[1], "--weights", tmp_path / "x3.pth", "--out", tmp_path / "out"]
    run("test_benchmark.py", *arguments, "--upscale", 3)
    assert Image.open(tmp_path / "out" / "image_0_x3.png").size == (102, 75)
    error = the_error(run("test_benchmark.py", *arguments, "--upscale", 4, status=None))
    assert "--upscale 4" in error
    assert "holds an x3 generator" in error


def test_bf16_scores_what_fp32_does_and_is_no_default(photos, tmp_path):
    def scored(name, *precision):
        run("test_benchmark.py", "--hr", photos[1], "--out", tmp_path / name, *precision)
        return table_of(tmp_path / name)

    default = scored("default")
    fp32 = scored("fp32", "--precision", "fp32")
    bf16 = scored("bf16", "--precision", "bf16")
    assert default.equals(fp32)
    assert not bf16.equals(fp32)
    assert bf16["SR_Y_PSNR"].tolist() == pytest.approx(fp32["SR_Y_PSNR"].tolist(), abs=0.05)
    assert bf16["Bicubic_Y_PSNR"].equals(fp32["Bicubic_Y_PSNR"])


@pytest.fixture
def squeezenet(tmp_path) -> Path:
    """A file of SqueezeNet with untrained weights."""
    torch.save(pretrained.load("squeezenet", "random").state_dict, tmp_path / "squeezenet.pth")
    return tmp_path / "squeezenet.pth"


def test_what_psnr_misses_is_measured_of_bicubic_and_sr(photos, tmp_path, squeezenet):
    out = tmp_path / "out"
    options = ["--hr", photos[1], "--out", out, "--perceptual-weights", squeezenet]
    done = run("test_benchmark.py", *options)
    table = table_of(out)
    networks = metrics.distance_networks(weights=[pretrained.load("squeezenet", str(squeezenet))])
    for name in ("image_0", "image_1"):
        hr = images.crop_to_multiple(images.read_picture(photos[1] / f"{name}.png").rgb, 4)
        sr = images.read_picture(out / f"{name}_x4.png").rgb
        bicubic = images.upscale_bicubic(images.downscale(hr, 4), 4)
        hr_tensor = images.to_tensor(hr)
        for what, picture in (("SR", sr), ("Bicubic", bicubic)):
            expected = metrics.beyond_psnr(images.to_tensor(picture), hr_tensor, 4, networks)
            assert expected.keys() == {"Distance", "Detail", "Colour", "Grid"}
            found = {figure: table.loc[name, f"{what}_{figure}"] for figure in expected}
            assert found == pytest.approx(expected, rel=1e-4)
    mean = table.loc["mean"]
    assert mean["SR_Detail"] > mean["Bicubic_Detail"] > 0.1
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["Y_PSNR", "Y_SSIM"]
    assert max(map(len, lines[:7])) <= 100
    for line, what in ((lines[5], "Bicubic"), (lines[6], "SR")):
        distance = f"{mean[f'{what}_Distance']:.3f}"
        texture = [f"{mean[f'{what}_{figure}']:.2f}" for figure in ("Detail", "Colour", "Grid")]
        assert line.split()[-4:] == [distance, *texture]
    assert "Distance was not measured" not in done.stdout


def test_the_distance_of_vgg19_stands_beside_that_of_squeezenet(photos, tmp_path, squeezenet):
    torch.save(slice_of_vgg19(), tmp_path / "slice.pth")
    out = tmp_path / "out"
    options = ["--hr", photos[1], "--out", out]
    options += ["--perceptual-weights", tmp_path / "slice.pth", squeezenet]
    done = run("test_benchmark.py", *options)
    table = table_of(out)
    loaded = [pretrained.load("vgg19", str(tmp_path / "slice.pth"))]
    loaded.append(pretrained.load("squeezenet", str(squeezenet)))
    networks = metrics.distance_networks(weights=loaded)
    assert list(networks) == ["Distance", "Distance_VGG19"]
    hr = images.crop_to_multiple(images.read_picture(photos[1] / "image_0.png").rgb, 4)
    sr = images.read_picture(out / "image_0_x4.png").rgb
    expected = metrics.beyond_psnr(images.to_tensor(sr), images.to_tensor(hr), 4, networks)
    for column in networks:
        assert table.loc["image_0", f"SR_{column}"] == pytest.approx(expected[column], rel=1e-4)
    assert "Distance  Distance_VGG19" in done.stdout.splitlines()[0]
    options[-1] = tmp_path / "slice.pth"
    error = the_error(run("test_benchmark.py", *options, status=2))
    assert "--perceptual-weights: name one file of each network at most" in error


def test_distance_without_weights_is_left_out_and_a_line_says_how_to_get_it(photos, tmp_path):
    Image.new("RGB", (40, 16), "gray").save(photos[1] / "flat.png")
    done = run("test_benchmark.py", "--hr", photos[1], "--out", tmp_path / "out")
    table = table_of(tmp_path / "out")
    lines = done.stdout.splitlines()
    assert {"SR_Detail", "SR_Colour", "SR_Grid"} <= set(table)
    assert "SR_Distance" not in table
    assert "--perceptual-weights imagenet downloads SqueezeNet's weights once, 5 MB" in lines[-1]
    assert not (tmp_path / "hub").exists()
    flat = next(line for line in lines if line.startswith("flat"))
    assert flat.split()[-3:-1] == ["-", "-"]
    assert table.loc["flat", ["SR_Detail", "SR_Colour"]].isna().all()
    details = table["SR_Detail"]
    assert details["mean"] == pytest.approx(details.iloc[:-1].mean(), rel=1e-4)


def test_perceptual_weights_that_cannot_be_used_are_one_line(photos, tmp_path):
    (tmp_path / "bad.pth").write_bytes(bytes(1000))
    untrained = "--perceptual-weights random: Distance between untrained features means nothing"
    offline = "the ImageNet weights of SqueezeNet could not be downloaded from https://"
    for weights, reason in [
        (tmp_path / "bad.pth", "bad.pth"),
        (tmp_path / "none.pth", "none.pth"),
        ("random", untrained),
        ("imagenet", offline),
    ]:
        arguments = ["--hr", photos[1], "--out", tmp_path / "out", "--perceptual-weights", weights]
        assert reason in the_error(run("test_benchmark.py", *arguments, status=None))
    assert not (tmp_path / "out").exists()


def test_lpips_that_cannot_be_measured_is_one_line(photos, tmp_path):
    options = ["--hr", photos[1], "--lpips", "--out", tmp_path / "out"]
    error = the_error(run("test_benchmark.py", *options, status=None))
    assert "LPIPS cannot be measured: AlexNet's ImageNet weights could not be downloaded" in error
    assert not (tmp_path / "out").exists()


def enlarged(hr: Path, folder: Path, names: dict[str, str], size: tuple[int, int]) -> Path:
    """A folder of the HR images, blurred, under other names and in another size."""
    folder.mkdir()
    for name, other in names.items():
        image = Image.open(hr / name)
        quarter = image.resize((25, 18), Image.Resampling.BILINEAR)
        quarter.resize(size, Image.Resampling.BILINEAR).save(folder / other)
    return folder


@pytest.mark.parametrize(
    ("names", "size"),
    [
        ({"image_0.png": "image_0.bmp", "image_1.png": "image_1_x4.png"}, (100, 72)),
        ({"image_0.png": "image_0.png"}, (102, 75)),
    ],
)
def test_pictures_enlarged_elsewhere_are_scored(photos, tmp_path, names, size):
    """Their size may be HR's own, or what is left of it when the scale has to divide it."""
    if len(names) == 1:
        (photos[1] / "image_1.png").unlink()
    sr = enlarged(photos[1], tmp_path / "sr", names, size)
    run("test_benchmark.py", "--hr", photos[1], "--sr", sr, "--out", tmp_path / "out")
    table = table_of(tmp_path / "out")
    assert list(table.index) == [Path(name).stem for name in names] + ["mean"]
    for name, other in names.items():
        ours = np.asarray(Image.open(sr / other))[:72, :100]
        reference = np.asarray(Image.open(photos[1] / name))[:72, :100]
        expected = peak_signal_noise_ratio(reference, ours, data_range=255)
        row = table.loc[Path(name).stem]
        assert row["SR_RGB_PSNR"] == pytest.approx(expected, abs=0.01)
        assert row["Bicubic_RGB_PSNR"] != row["SR_RGB_PSNR"]
    assert not list((tmp_path / "out").glob("*.png"))


def test_our_own_pictures_score_as_when_they_were_made(photos, tmp_path):
    generator_file.save(tmp_path / "x3.pth", Generator(3, 1))
    made = tmp_path / "made"
    read = tmp_path / "read"
    script = ["test_benchmark.py", "--hr", photos[1]]
    run(*script, "--weights", tmp_path / "x3.pth", "--out", made)
    run(*script, "--sr", made, "--upscale", 3, "--out", read)
    assert (made / "benchmark.csv").read_text() == (read / "benchmark.csv").read_text()


def test_pictures_that_do_not_pair_or_fit_are_one_line(photos, tmp_path):
    same = tmp_path / "same"
    half = tmp_path / "half"
    one = tmp_path / "one"
    names = {"image_0.png": "image_0.png", "image_1.png": "image_1_x4.png"}
    enlarged(photos[1], same, names, (100, 72))
    enlarged(photos[1], half, names, (50, 36))
    enlarged(photos[1], one, {"image_0.png": "image_0_x4.png"}, (100, 72))
    arguments = ["test_benchmark.py", "--hr", photos[1], "--out", tmp_path / "out"]
    missing = f"image_1: no SR image named image_1 or image_1_x4 (with any suffix) in {one}"
    for options, reason in [
        (["--sr", same, "--lr", same], "--lr: not allowed with argument --sr"),
        (["--sr", same, "--weights", "srresnet_x4"], "--weights cannot be combined with --sr"),
        (["--sr", tmp_path / "none"], "none: no such folder"),
        (["--sr", one], missing),
        (["--sr", same, "--upscale", 2], "image_1: no SR image named image_1 or image_1_x2"),
        (["--sr", half], f"{half / 'image_0.png'}: 48x36 pixels do not fit HR's 100x72"),
    ]:
        assert reason in the_error(run(*arguments, *options, status=None))
    Image.new("RGB", (100, 72)).save(same / "image_1.jpg")
    assert "image_1: several SR images" in the_error(run(*arguments, "--sr", same, status=None))


def test_bad_folders_are_one_line(photos, tmp_path):
    (tmp_path / "lr").mkdir()
    Image.new("RGB", (10, 10)).save(tmp_path / "lr" / "image_0.png")
    for arguments, reason in [
        (["--hr", tmp_path / "none"], "no such folder"),
        (["--hr", photos[1], "--lr", tmp_path / "lr"], "image_1.png: no LR image"),
        (["--hr", photos[1], "--weights", tmp_path / "none.pth"], "no such generator file"),
    ]:
        done = run("test_benchmark.py", *arguments, "--out", tmp_path / "out", status=None)
        assert reason in the_error(done)
    assert not (tmp_path / "out").exists()
    Image.new("RGB", (8, 40)).save(tmp_path / "lr" / "image_0.png")
    done = run("test_benchmark.py", "--hr", tmp_path / "lr", "--out", tmp_path / "out", status=2)
    assert "image_0: too small" in done.stderr
    assert "Traceback" not in done.stderr
