import pandas
import pytest
from conftest import run, the_error
from PIL import Image

from model import Generator
from utils import checkpoint


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """A hub folder without weights, and a proxy that is not there, so that no test downloads any."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


def test_the_papers_benchmark(set5, tmp_path):
    done = run("test_benchmark.py", "--hr", set5 / "x4" / "HR", "--lr", set5 / "x4" / "LR", "--out", tmp_path / "out")
    table = pandas.read_csv(tmp_path / "out" / "benchmark.csv").set_index("Image")
    mean = table.loc["mean"]
    assert mean["Bicubic_Y_PSNR"] == pytest.approx(28.43, abs=0.02) and mean["Bicubic_Y_SSIM"] == pytest.approx(
        0.8111, abs=1e-3
    )
    assert table["Bicubic_Y_PSNR"].tolist()[:5] == pytest.approx([31.78, 30.18, 22.10, 31.61, 26.47], abs=0.02)
    assert mean["SR_Y_PSNR"] > 30.5
    assert mean["SR_Y_PSNR"] == pytest.approx(table["SR_Y_PSNR"].iloc[:5].mean(), abs=1e-3)
    assert "28.43" in done.stdout and "LPIPS is not measured" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [f"img_00{i}_x4.png" for i in range(1, 6)]


def test_hr_alone_and_another_scale(photos, tmp_path):
    checkpoint.save_generator(tmp_path / "x3.pth", Generator(3, 1))
    arguments = ["--hr", photos[1], "--weights", tmp_path / "x3.pth", "--out", tmp_path / "out"]
    run("test_benchmark.py", *arguments, "--upscale", 3)
    assert Image.open(tmp_path / "out" / "image_0_x3.png").size == (102, 75)
    error = the_error(run("test_benchmark.py", *arguments, "--upscale", 4, status=None))
    assert "--upscale 4" in error and "holds a generator of x3" in error


def test_bad_folders_are_one_line(photos, tmp_path):
    (tmp_path / "lr").mkdir()
    Image.new("RGB", (10, 10)).save(tmp_path / "lr" / "image_0.png")
    for arguments, reason in [
        (["--hr", tmp_path / "none"], "no such folder"),
        (["--hr", photos[1], "--lr", tmp_path / "lr"], "image_1.png: no LR image"),
        (["--hr", photos[1], "--weights", tmp_path / "none.pth"], "no such generator file"),
    ]:
        assert reason in the_error(run("test_benchmark.py", *arguments, "--out", tmp_path / "out", status=None))
    assert not (tmp_path / "out").exists()
    Image.new("RGB", (8, 40)).save(tmp_path / "lr" / "image_0.png")
    done = run("test_benchmark.py", "--hr", tmp_path / "lr", "--out", tmp_path / "out", status=2)
    assert "image_0: too small" in done.stderr and "Traceback" not in done.stderr
