import subprocess
import sys

import pytest
from conftest import ROOT, run, the_error
from PIL import Image

import plot_statistics
from utils import run_log, statistics

LOSSES_AND_SCORES = [name for name, page in statistics.COLUMNS.items() if page in ("loss", "score")]
PIXEL_ONLY = ["Loss_G", "Loss_Pixel"]


def row(epoch: int, pixel_only: bool, **values) -> dict:
    means = dict.fromkeys(PIXEL_ONLY if pixel_only else LOSSES_AND_SCORES, 0.5 / epoch)
    scores = {"PSNR": 24 + epoch, "SSIM": 0.7, "Bicubic_PSNR": 25.0, "Bicubic_SSIM": 0.72}
    others = {"Epoch": epoch, "Learning_Rate": 1e-4, "Images_Per_Second": 10.0, "Seconds": 3.0}
    return dict.fromkeys(statistics.COLUMNS) | means | scores | others | values


@pytest.mark.parametrize("phases", [[True, False, False], [True], [False]])
def test_the_picture_is_drawn(tmp_path, phases):
    statistics.write_statistics(
        tmp_path / "s.csv", [row(epoch, pixel) for epoch, pixel in enumerate(phases, 1)]
    )
    done = run("plot_statistics.py", tmp_path / "s.csv", "--out", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.size[0] >= 1000
        assert len(picture.convert("RGB").getcolors(2**24)) > 50
    assert f"best PSNR {24 + len(phases):.2f} dB" in done.stdout


def test_curves_are_drawn_without_importing_pytorch(tmp_path):
    statistics.write_statistics(tmp_path / "s.csv", [row(1, False), row(2, False)])
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    print(*sys.modules)\n"
    )
    words = [sys.executable, "-c", code, ROOT / "plot_statistics.py", tmp_path / "s.csv"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and (tmp_path / "s.png").exists(), done.stderr
    modules = done.stdout.splitlines()[-1].split()
    assert "pandas" in modules and "torch" not in modules


def test_bad_files_are_one_line(tmp_path):
    for name, text, reason in [
        ("none.csv", None, "No such file"),
        ("empty.csv", "", "not a CSV"),
        ("other.csv", "a,b\n1,2\n", "no column Epoch"),
        ("header.csv", ",".join(statistics.COLUMNS) + "\n", "no epoch is finished yet"),
        (
            "words.csv",
            ",".join(statistics.COLUMNS) + "\n" + ",".join(["x"] * len(statistics.COLUMNS)) + "\n",
            "not a number",
        ),
    ]:
        if text is not None:
            (tmp_path / name).write_text(text)
        assert reason in the_error(run("plot_statistics.py", tmp_path / name, status=None))
    assert not list(tmp_path.glob("*.png"))


def test_the_log_explains_a_discriminator_that_has_won_or_collapsed():
    won = [row(epoch, False, Score_D=0.999, Score_G=0.001) for epoch in (1, 2, 3)]
    assert "always tells real from fake" in run_log.epoch_text(won, 9)
    assert "note" not in run_log.epoch_text(won[:2], 9)
    collapsed = [row(epoch, False, Score_D=0.5, Score_G=0.499) for epoch in (1, 2, 3)]
    assert "collapsed" in run_log.epoch_text(collapsed, 9)
    healthy = [row(epoch, False, Score_D=0.96, Score_G=0.09) for epoch in (1, 2, 3)]
    assert "note" not in run_log.epoch_text([*healthy, row(4, True)], 9)


def test_an_empty_panel_says_what_is_missing(tmp_path, monkeypatch):
    import matplotlib.axes

    said = []
    monkeypatch.setattr(
        matplotlib.axes.Axes, "text", lambda _self, _x, _y, text, **_: said.append(text)
    )
    unmeasured = dict.fromkeys(("PSNR", "SSIM", "Bicubic_PSNR", "Bicubic_SSIM"))
    statistics.write_statistics(tmp_path / "s.csv", [row(1, True, **unmeasured)])
    plot_statistics.plot(statistics.read_statistics(tmp_path / "s.csv"), tmp_path / "s.png")
    assert said == ["no validated epoch"] * 2 + ["no adversarial epoch"] * 2
