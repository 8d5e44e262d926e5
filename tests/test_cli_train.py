import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Running, run, started_script, tensors, the_error
from faults import broken_files
from PIL import Image

import train
from dataloader import ValDatasetFromFolder
from model import Discriminator, Generator
from train import learning_rate_at
from utils import checkpoint, cli, files, generator_file, pretrained, run_log, statistics
from utils.run_log import COLUMNS, Progress
from validation import validate


def command(photos, out, *more) -> list:
    """Options of a small run; fp32 gives the same on processors with and without bf16 units."""
    fixed = [
        "--crop",
        32,
        "--batch-size",
        3,
        "--blocks",
        1,
        "--perceptual",
        "squeezenet",
        "--perceptual-weights",
        "random",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    return ["--train-dir", photos[0], "--val-dir", photos[1], *fixed, "--out", out, *more]


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out / "statistics.csv") as file:
        return list(csv.DictReader(file))


def without_times(out: Path) -> list[dict[str, str]]:
    return [
        {name: value for name, value in row.items() if name not in ("Images_Per_Second", "Seconds")}
        for row in rows_of(out)
    ]


NEW_OPTIONS = (
    "perceptual_shift",
    "perceptual_zoom",
    "grid_weight",
    "consistency_weight",
    "sharpen",
    "even_phases",
    "freeze_batch_norm",
    "joint_batch",
)  # since the first version


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights and rows."""
    for name in ("last.pth", "generator_last.pth", "generator_best.pth"):
        a, b = tensors(one / "checkpoints" / name), tensors(other / "checkpoints" / name)
        assert a.keys() == b.keys() and len(a) > 10
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert without_times(one) == without_times(other)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, astronaut):
    """One pixel-only and two adversarial epochs, with everything on, uninterrupted."""
    folder = tmp_path_factory.mktemp("run")
    for name, count in (("train", 4), ("valid", 2)):
        (folder / name).mkdir()
        for index in range(count):
            Image.fromarray(astronaut[100 * index : 100 * index + 75, 200:302]).save(
                folder / name / f"image_{index}.png"
            )
    photos = folder / "train", folder / "valid"
    done = run("train.py", *command(photos, folder / "out", "--epochs", 2, *EVERYTHING))
    return photos, folder / "out", done


EVERYTHING = [
    "--perceptual",
    "vgg16",
    "--pretrain-epochs",
    1,
    "--ema",
    0.9,
    "--lr-schedule",
    "cosine",
    "--warmup-steps",
    1,
    "--crops-per-image",
    2,
]


def test_a_run_leaves_all_that_the_design_lists(whole_run):
    _, out, done = whole_run
    expected = {"config.json", "statistics.csv", "checkpoints/last.pth", "checkpoints/previous.pth"}
    expected |= {f"checkpoints/generator_{name}.pth" for name in ("last", "best", "pretrained")}
    expected |= {"checkpoints/discriminator_last.pth"}
    expected |= {
        f"validation/epoch_00{epoch}/image_{index}.png" for epoch in (1, 2, 3) for index in (0, 1)
    }
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {
        ".lock"
    } == expected
    assert "9 updates" in done.stdout and "UNTRAINED" in done.stdout and "finished" in done.stdout
    shares = r"^time: training \d+%, validation \d+%, checkpoints \d+%(;|$)"
    assert re.search(shares, done.stdout, re.M), done.stdout
    config = json.loads((out / "config.json").read_text())
    assert (
        config["options"]["crop"] == 32
        and config["versions"]["torch"]
        and config["device"]["type"] == "cpu"
    )


def test_the_end_says_which_share_of_the_time_was_training():
    seconds = {"training": 19.0, "validation": 27.5, "checkpoints": 3.5}
    shares = "time: training 38%, validation 55%, checkpoints 7%"
    advice = "; a larger --val-every or --crops-per-image (with another --out) leaves more time"
    advice += " for training"
    assert run_log.time_text(seconds) == shares + advice
    seconds["training"] = 31.0
    assert run_log.time_text(seconds) == "time: training 50%, validation 44%, checkpoints 6%"


def test_config_says_whether_the_files_differ_from_the_commit(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "run_log.py").write_text("one")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(run_log, "__file__", str(tmp_path / "run_log.py"))
    machine = {"device": "cpu", "threads": 1}
    found = []
    for text in ("one", "two"):
        (tmp_path / "run_log.py").write_text(text)
        run_log.write_config(
            tmp_path / "config.json", {"options": {}, "degradation": {}, "machine": machine}
        )
        found.append(json.loads((tmp_path / "config.json").read_text()))
    assert len(found[0]["git_commit"]) == 40 and [config["git_dirty"] for config in found] == [
        False,
        True,
    ]
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    run_log.write_config(
        tmp_path / "config.json", {"options": {}, "degradation": {}, "machine": machine}
    )
    assert json.loads((tmp_path / "config.json").read_text())["git_commit"] is None


def test_a_value_without_a_column_is_an_error_and_an_older_csv_is_read(tmp_path):
    row = dict.fromkeys(COLUMNS, 1.0)
    with pytest.raises(KeyError, match="no column for Loss_Pixle"):
        statistics.write_statistics(tmp_path / "s.csv", [row | {"Loss_Pixle": 0.5}])
    assert not (tmp_path / "s.csv").exists()
    statistics.write_statistics(tmp_path / "s.csv", [row])
    columns = list(COLUMNS).index("LPIPS")  # as before LPIPS was
    lines = [
        ",".join(line.split(",")[:columns])
        for line in (tmp_path / "s.csv").read_text().splitlines()
    ]
    (tmp_path / "old.csv").write_text("\n".join(lines))
    table = statistics.read_statistics(tmp_path / "old.csv")
    assert list(table) == list(COLUMNS) and table["LPIPS"].isna().all() and table["Seconds"][0] == 1


def test_the_csv_has_its_columns_and_leaves_out_what_does_not_apply(whole_run):
    _, out, _ = whole_run
    rows = rows_of(out)
    assert list(rows[0]) == list(COLUMNS) and [row["Epoch"] for row in rows] == ["1", "2", "3"]
    assert {name for name in rows[0] if COLUMNS[name] in ("loss", "score") and rows[0][name]} == {
        "Loss_G",
        "Loss_Pixel",
    }
    for row in rows[1:]:
        empty = {"LPIPS", "Distance", "Loss_Grid", "Loss_Consistency"}  # no weight, or no network
        assert {name for name in COLUMNS if not row[name]} == empty
        values = {name: float(row[name]) for name in COLUMNS if row[name]}
        weights = {
            "Loss_Pixel": 1,
            "Loss_Adversarial": 0.001,
            "Loss_Perceptual": 0.006,
            "Loss_TV": 2e-8,
        }
        assert values["Loss_G"] == pytest.approx(
            sum(weight * values[name] for name, weight in weights.items()), rel=1e-4
        )
        assert 0 < values["Score_D"] < 1 and 0 < values["Score_G"] < 1 and values["Loss_D"] > 0
    assert len({row["Bicubic_PSNR"] for row in rows}) == 1


def test_triplets_are_bicubic_hr_and_sr(whole_run):
    photos, out, _ = whole_run
    from utils import images

    triplet = images.read_picture(out / "validation" / "epoch_003" / "image_1.png").rgb
    hr = images.crop_to_multiple(images.read_picture(photos[1] / "image_1.png").rgb, 4)
    assert triplet.shape[1] == 3 * 100 + 2 * 4
    panels = [triplet[-72:, left : left + 100] for left in (0, 104, 208)]
    assert np.array_equal(panels[0], images.upscale_bicubic(images.downscale(hr, 4), 4))
    assert np.array_equal(panels[1], hr)
    assert not np.array_equal(panels[2], panels[0])


def test_the_same_command_says_that_the_run_is_finished_and_changes_nothing(whole_run):
    photos, out, _ = whole_run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    done = run("train.py", *command(photos, out, "--epochs", 2, *EVERYTHING))
    assert "finished" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_restart_continues_bit_for_bit_and_more_epochs_go_on(whole_run, tmp_path):
    """At a constant rate, one epoch and then two more give the same result as three at once."""
    photos, *_ = whole_run
    options = ["--pretrain-epochs", 1, "--ema", 0.9]
    run("train.py", *command(photos, tmp_path / "a", "--epochs", 2, *options))
    run("train.py", *command(photos, tmp_path / "b", "--epochs", 1, *options))
    assert len(rows_of(tmp_path / "b")) == 2
    done = run(
        "train.py", *command(photos, tmp_path / "b", "--epochs", 2, "--workers", 1, *options)
    )
    assert "resuming at epoch 3" in done.stdout
    assert_same_run(tmp_path / "a", tmp_path / "b")


def started(arguments: list, until: Path) -> Running:
    """A training run that has already written the file `until`."""
    running = started_script("train.py", *arguments)
    running.wait_until(until.exists)
    return running


@pytest.fixture(scope="module")
def stopped_run(whole_run, tmp_path_factory):
    """The same run, whose processes were all sent SIGTERM in the first adversarial epoch."""
    photos, *_ = whole_run
    out = tmp_path_factory.mktemp("stopped") / "out"
    arguments = command(photos, out, "--epochs", 2, *EVERYTHING, "--workers", 2)
    running = started(arguments, out / "checkpoints" / "generator_pretrained.pth")
    os.killpg(running.pid, signal.SIGTERM)  # the whole group, as a scheduler does
    done = running()
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "run the same command again to resume" in done.stderr
    return out


def test_sigterm_in_the_middle_saves_and_the_restart_ends_the_same(
    whole_run, stopped_run, tmp_path
):
    photos, whole, _ = whole_run
    shutil.copytree(stopped_run, tmp_path / "out")
    assert checkpoint.load_checkpoint(stopped_run / "checkpoints")[0]["progress"]["batch"] > 0
    run("train.py", *command(photos, tmp_path / "out", "--epochs", 2, *EVERYTHING))
    assert_same_run(tmp_path / "out", whole)


def test_ctrl_c_in_the_middle_saves_and_the_restart_ends_the_same(whole_run, tmp_path):
    photos, whole, _ = whole_run
    arguments = command(photos, tmp_path / "out", "--epochs", 2, *EVERYTHING)
    running = started(arguments, tmp_path / "out" / "checkpoints" / "generator_pretrained.pth")
    os.killpg(running.pid, signal.SIGINT)  # the whole group, as a terminal does
    done = running()
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "run the same command again to resume" in done.stderr
    run("train.py", *arguments)
    assert_same_run(tmp_path / "out", whole)


def test_a_second_ctrl_c_ends_at_once_and_leaves_nothing_half_written(whole_run, tmp_path):
    photos, whole, _ = whole_run
    out = tmp_path / "out"
    arguments = command(photos, out, "--epochs", 2, *EVERYTHING)
    running = started(arguments, out / "checkpoints" / "generator_pretrained.pth")
    os.kill(running.pid, signal.SIGINT)
    running.wait_until(lambda: "again to stop at once" in running.errors())
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.pid, signal.SIGINT)
    assert running().returncode == 130
    assert broken_files(out) == [] and not list(out.rglob(".srgan-*.tmp"))
    run("train.py", *arguments)
    assert_same_run(out, whole)


def run_limited(folder: Path, limit: str, *arguments) -> subprocess.CompletedProcess:
    """Run train.py after a statement that limits what its process may use."""
    script = folder / "limited.py"
    run_it = f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    script.write_text(f"import resource, runpy\n{limit}\n{run_it}\n")
    return started_script(script, *arguments)()


def test_running_out_of_memory_is_one_line_with_advice(whole_run, tmp_path):
    photos, *_ = whole_run
    options = ["--batch-size", 512, "--crops-per-image", 128, "--crop", 72]
    options += ["--pretrain-epochs", 1, "--epochs", 0]
    pages = "int(open('/proc/self/statm').read().split()[0])"
    limit = f"most = {pages} * resource.getpagesize() + 4 * 10**8\n"
    limit += "resource.setrlimit(resource.RLIMIT_AS, (most, most))"
    done = run_limited(tmp_path, limit, *command(photos, tmp_path / "out", *options))
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "out of memory" in line and "--batch-size" in line


def test_a_worker_that_is_killed_ends_the_run_in_one_line(photos, tmp_path):
    options = ["--epochs", 0, "--pretrain-epochs", 1, "--workers", 1, "--crops-per-image", 10_000]
    arguments = command(photos, tmp_path / "out", *options)
    running = started(arguments, tmp_path / "out" / "config.json")
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    running.wait_until(lambda: children.read_text())  # in the first epoch, which is long
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    done = running()
    assert done.returncode == 1 and "another process of this run has ended" in done.stderr
    # In the first step, PyTorch may be importing something, and logs the error before ours
    ours = [line for line in done.stderr.splitlines() if not re.match(r"W\d{4} ", line)]
    assert "Traceback" not in "".join(ours)


def test_changed_options_are_refused_by_name(whole_run):
    photos, out, _ = whole_run
    options = ["--epochs", 3, *EVERYTHING]
    error = the_error(
        run(
            "train.py", *command(photos, out, *options, "--batch-size", 2, "--seed", 1), status=None
        )
    )
    assert "--batch-size (was 3, is 2), --seed (was 0, is 1)" in error


def test_a_run_older_than_an_option_resumes_with_its_default(whole_run, tmp_path):
    photos, whole, _ = whole_run
    state = checkpoint.load_checkpoint(whole / "checkpoints")[0]
    del state["options"]["pixel_loss"]
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    checkpoint.save_checkpoint(tmp_path / "out" / "checkpoints", state)
    arguments = command(photos, tmp_path / "out", "--epochs", 2, *EVERYTHING)
    assert "nothing to do" in run("train.py", *arguments).stdout
    error = the_error(run("train.py", *arguments, "--pixel-loss", "l1", status=None))
    assert "--pixel-loss (was mse, is l1)" in error


def test_a_checkpoint_of_the_first_version_resumes(whole_run, stopped_run, tmp_path):
    """It stored the sums of an unfinished epoch as one tensor, and had fewer options and facts."""
    photos, whole, _ = whole_run
    shutil.copytree(stopped_run, tmp_path / "out")
    state = checkpoint.load_checkpoint(tmp_path / "out" / "checkpoints")[0]
    progress = state["progress"]
    names = [
        "Loss_D",
        "Loss_G",
        "Score_D",
        "Score_G",
        "Loss_Pixel",
        "Loss_Adversarial",
        "Loss_Perceptual",
        "Loss_TV",
    ]
    progress["sums"] = torch.stack([progress["sums"][name] for name in names], -1)
    del progress["validation_seconds"], state["perceptual"]
    for option in (
        "accumulate",
        "grad_clip",
        "learning_rate_d",
        "lpips",
        "save_every",
        *NEW_OPTIONS,
    ):
        del state["options"][option]
    checkpoint.save_checkpoint(
        tmp_path / "out" / "checkpoints", {k: v for k, v in state.items() if k != "format"}
    )
    run("train.py", *command(photos, tmp_path / "out", "--epochs", 2, *EVERYTHING))
    assert_same_run(tmp_path / "out", whole)


def test_more_epochs_under_a_cosine(whole_run, stopped_run, tmp_path):
    """`--epochs` cannot change during a cosine; a finished run may continue, and says how."""
    photos, whole, _ = whole_run
    arguments = command(photos, stopped_run, *EVERYTHING, "--epochs", 3)
    error = the_error(run("train.py", *arguments, status=None))
    assert "--epochs was 2, is 3" in error and "--epochs 2 first" in error
    shutil.copytree(whole, tmp_path / "whole")
    done = run("train.py", *command(photos, tmp_path / "whole", *EVERYTHING, "--epochs", 3))
    assert "follows a cosine over 3 epochs instead of 2: it rises again at epoch 4" in done.stdout
    assert len(rows_of(tmp_path / "whole")) == 4


def assert_last_epoch_repeats(one: Path, other: Path, *arguments) -> None:
    """A copy of a run that goes on from before the last epoch ends the same."""
    shutil.copytree(one, other, ignore=shutil.ignore_patterns("last.pth"))
    assert "resuming at epoch 2, step 1" in run("train.py", *arguments).stdout
    assert_same_run(one, other)


def test_what_is_random_depends_on_the_place_in_the_run_alone(photos, tmp_path):
    """With a random shift, ESRGAN's losses and degraded LR, too."""
    options = ["--adversarial-loss", "relativistic", "--discriminator", "unet"]
    options += ["--degradation", "photo"]
    options += ["--grid-weight", 1000, "--consistency-weight", 300, "--pixel-loss", "l1"]
    one, other = tmp_path / "a", tmp_path / "b"
    run("train.py", *command(photos, one, "--epochs", 2, *options))
    assert_last_epoch_repeats(one, other, *command(photos, other, "--epochs", 2, *options))
    row = rows_of(tmp_path / "a")[0]
    parts = {
        "Pixel": 1,
        "Adversarial": 1e-3,
        "Perceptual": 0.1,
        "TV": 2e-8,
        "Grid": 1000,
        "Consistency": 300,
    }
    total = sum(weight * float(row[f"Loss_{name}"]) for name, weight in parts.items())
    assert total == pytest.approx(float(row["Loss_G"]), rel=1e-4)
    run(
        "train.py",
        *command(photos, tmp_path / "c", "--epochs", 1, *options, "--perceptual-shift", 0),
    )
    run(
        "train.py",
        *command(photos, tmp_path / "d", "--epochs", 1, *options, "--perceptual-zoom", 1),
    )
    losses = [rows_of(tmp_path / name)[0]["Loss_Perceptual"] for name in "acd"]
    assert len(set(losses)) == 3


def slice_of_vgg19() -> dict[str, torch.Tensor]:
    """Untrained first layers of VGG19, with few channels and the names of style transfer."""
    generator = torch.Generator().manual_seed(1)
    state = {"0.weight": torch.eye(3).view(3, 3, 1, 1), "0.bias": torch.zeros(3)}
    channels = 3
    for name, width in (("2", 4), ("5", 4), ("9", 8), ("12", 8), ("16", 12)):
        state[f"{name}.weight"] = torch.randn((width, channels, 3, 3), generator=generator) / 5
        state[f"{name}.bias"] = torch.zeros(width)
        channels = width
    return state


def test_a_slice_of_vgg19_is_the_perceptual_network_of_a_run(photos, tmp_path):
    """Also with the degradation that changes HR. A run that was interrupted ends the same."""
    torch.save(slice_of_vgg19(), tmp_path / "slice.pth")
    options = ["--perceptual", "vgg19", "--perceptual-weights", tmp_path / "slice.pth"]
    options += ["--degradation", "photo-2", "--crops-per-image", 2]
    one, other = tmp_path / "a", tmp_path / "b"
    run("train.py", *command(photos, one, "--epochs", 2, *options))
    assert_last_epoch_repeats(one, other, *command(photos, other, "--epochs", 2, *options))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["degradation"]["version"] == "photo-2"
    for row in rows_of(tmp_path / "a"):
        total = float(row["Loss_Pixel"]) + 1e-3 * float(row["Loss_Adversarial"])
        total += float(row["Loss_Perceptual"]) + 2e-8 * float(row["Loss_TV"])
        assert float(row["Loss_Perceptual"]) > 0
        assert total == pytest.approx(float(row["Loss_G"]), rel=1e-4)


def test_the_degradation_belongs_to_a_run_and_to_its_files(photos, tmp_path):
    options = ["--pretrain-epochs", 1, "--epochs", 0, "--degradation", "photo"]
    run("train.py", *command(photos, tmp_path / "out", *options))
    recipe = json.loads((tmp_path / "out" / "config.json").read_text())["degradation"]
    assert recipe["version"] == "photo-1" and recipe["passes"]["full"][0]["quality"] == [40, 95]
    assert (
        files.load_tensors(tmp_path / "out" / "checkpoints" / "generator_last.pth")["degradation"]
        == "photo-1"
    )
    bicubic = run("train.py", *command(photos, tmp_path / "out", *options[:4]), status=2)
    assert "--degradation (was photo, is bicubic)" in the_error(bicubic)
    path = tmp_path / "out" / "checkpoints" / "last.pth"
    state = files.load_tensors(path)
    state["degradation"]["version"] = "photo-0"
    state["progress"]["epoch"] = 1
    files.save_tensors(path, state)
    error = the_error(run("train.py", *command(photos, tmp_path / "out", *options), status=2))
    assert "started with the degradation photo-0, this version has photo-1" in error


def test_a_run_of_the_time_before_other_perceptual_networks_goes_on(photos, tmp_path):
    """Its checkpoint names --vgg-weights, and lacks the newer options."""
    arguments = command(photos, tmp_path, "--perceptual", "vgg16")
    run("train.py", *arguments, "--epochs", 1)
    path = tmp_path / "checkpoints" / "last.pth"
    state = files.load_tensors(path)
    options = state["options"]
    options["vgg_weights"] = options.pop("perceptual_weights")
    for name in ("perceptual", "adversarial_loss", *NEW_OPTIONS):
        del options[name]
    files.save_tensors(path, state)
    done = run("train.py", *arguments, "--epochs", 2, "--vgg-weights", "random")
    assert "finished" in done.stdout and len(rows_of(tmp_path)) == 2


def test_a_replaced_perceptual_file_is_noticed(photos, tmp_path):
    path = tmp_path / "squeezenet.pth"
    state = pretrained.load("squeezenet", "random").state_dict
    torch.save(state, path)
    options = command(photos, tmp_path / "out", "--perceptual-weights", path)
    run("train.py", *options, "--epochs", 1)
    state["0.bias"][0] = 1.0
    torch.save(state, path)
    error = the_error(run("train.py", *options, "--epochs", 2, status=None))
    assert "--perceptual-weights: not the weights that the run started with" in error


def test_a_run_that_does_without_its_adversarial_epochs_needs_no_perceptual_network(
    photos, tmp_path
):
    arguments = command(photos, tmp_path / "out", "--pretrain-epochs", 8, "--val-every", 8)
    running = started([*arguments, "--epochs", 1], tmp_path / "out" / "checkpoints" / "last.pth")
    os.kill(running.pid, signal.SIGTERM)
    assert running().returncode == 128 + signal.SIGTERM
    state = checkpoint.load_checkpoint(tmp_path / "out" / "checkpoints")[0]
    assert state["progress"]["epoch"] <= 8
    assert "finished" in run("train.py", *arguments, "--epochs", 0).stdout


def test_a_validation_that_is_stopped_has_no_scores(photos):
    dataset, stop = ValDatasetFromFolder(photos[1], 4), cli.StopRequest()
    names = []
    dataset_type = type(
        "Stopping",
        (ValDatasetFromFolder,),
        {"__getitem__": lambda self, index: stopping(self, index)},
    )

    def stopping(self, index):
        names.append(index)
        stop.number = signal.SIGTERM
        return ValDatasetFromFolder.__getitem__(self, index)

    dataset.__class__ = dataset_type
    assert validate(Generator(4, 1), dataset, "fp32", None, 0, stop) is None and names == [0]


def test_a_checkpoint_of_another_version_is_refused_and_kept(whole_run, tmp_path):
    photos, *_ = whole_run
    for name in ("last.pth", "previous.pth"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        files.save_tensors(tmp_path / "checkpoints" / name, {"format": "srgan-checkpoint-9"})
    error = the_error(run("train.py", *command(photos, tmp_path, "--epochs", 1), status=None))
    assert "last.pth: not a training checkpoint of this version; use another --out" in error
    assert (tmp_path / "checkpoints" / "last.pth").exists()


def test_clipping_accumulation_and_the_rarer_options_are_trained_and_resumed(photos, tmp_path):
    options = [
        "--even-phases",
        "--freeze-batch-norm",
        "--joint-batch",
        "--pretrain-epochs",
        1,
        "--epochs",
        1,
        "--grad-clip",
        0.1,
        "--accumulate",
        2,
        "--learning-rate-d",
        0,
        "--save-every",
        2,
        "--batch-size",
        4,
    ]
    one, other = tmp_path / "a", tmp_path / "b"
    run("train.py", *command(photos, one, *options))
    assert_last_epoch_repeats(one, other, *command(photos, other, *options))
    kept = sorted(path.name for path in (tmp_path / "a" / "checkpoints").glob("generator_epoch_*"))
    assert kept == ["generator_epoch_002.pth"]
    state = checkpoint.load_checkpoint(tmp_path / "a" / "checkpoints")[0]["models"]["discriminator"]
    torch.manual_seed(0)
    Generator(4, 1)  # drawn before D
    fresh = Discriminator().state_dict()
    assert all(
        torch.equal(state[name], tensor)
        for name, tensor in fresh.items()
        if name.endswith("weight")
    )  # rate 0
    assert "--accumulate 5 asks for more parts" in the_error(
        run(
            "train.py",
            *command(photos, tmp_path / "c", "--batch-size", 4, "--accumulate", 5),
            status=None,
        )
    )


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole_run, tmp_path):
    photos, whole, _ = whole_run
    shutil.copytree(whole, tmp_path / "out")
    last = tmp_path / "out" / "checkpoints" / "last.pth"
    last.write_bytes(last.read_bytes()[:-1000])
    done = run("train.py", *command(photos, tmp_path / "out", "--epochs", 2, *EVERYTHING))
    assert (
        "warning" in done.stderr
        and "last.pth" in done.stderr
        and "resuming at epoch 3" in done.stdout
    )
    assert_same_run(tmp_path / "out", whole)


def test_images_that_changed_since_are_named(whole_run, tmp_path):
    photos, *_ = whole_run
    shutil.copytree(photos[0].parent, tmp_path / "moved")
    moved = tmp_path / "moved" / "train", tmp_path / "moved" / "valid"
    arguments = command(moved, tmp_path / "moved" / "out", "--epochs", 3, *EVERYTHING)
    Image.new("RGB", (102, 75), "red").save(moved[0] / "image_2.png")
    (moved[0] / "image_0.png").unlink()
    assert "image_0.png is gone, image_2.png has changed" in the_error(
        run("train.py", *arguments, status=None)
    )


def test_two_runs_on_one_folder(whole_run, tmp_path):
    with files.lock(tmp_path / ".lock"):
        assert "another process" in the_error(
            run("train.py", *command(whole_run[0], tmp_path, "--epochs", 1), status=None)
        )


def test_a_dry_run_writes_nothing(whole_run, tmp_path):
    photos, *_ = whole_run
    before = sorted(photos[0].parent.rglob("*"))
    done = run("train.py", *command(photos, tmp_path / "out", "--dry-run", "--pretrain-epochs", 1))
    assert (
        "LR (3, 3, 8, 8)" in done.stdout
        and "SR (3, 3, 32, 32)" in done.stdout
        and "Bicubic_PSNR" in done.stdout
    )
    assert "note: an epoch has only" not in done.stdout
    large = ["--batch-size", 9, "--dry-run", "--epochs", 1]
    done = run("train.py", *command(photos, tmp_path / "out", *large))
    assert "1 adversarial epoch of 1 update with 4 crops of 32x32: 1 update in total" in done.stdout
    hint = "an epoch has only 4 crops, fewer than --batch-size 9; pass --crops-per-image 3"
    assert hint in done.stdout
    assert not (tmp_path / "out").exists() and sorted(photos[0].parent.rglob("*")) == before


def test_a_dry_run_reads_and_downloads_only_what_it_needs(photos, tmp_path, monkeypatch):
    """A damaged image beyond the first goes unnoticed; missing VGG16 weights are only reported."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    (photos[1] / "image_9.png").write_bytes((photos[1] / "image_0.png").read_bytes()[:2000])
    arguments = command(
        photos, tmp_path / "out", "--dry-run", "--vgg-weights", "imagenet", "--learning-rate", 0
    )
    arguments += ["--perceptual", "vgg16"]
    done = run("train.py", *arguments)
    assert (
        "would download https://" in done.stdout
        and "vgg16" in done.stdout
        and "untrained features" in done.stdout
    )
    assert "step of epoch 1:" in done.stdout and "Loss_Perceptual" in done.stdout
    assert not (tmp_path / "hub").exists()
    scores = done.stdout.split("validation image: ")[1].splitlines()[0]
    assert (
        scores
        != run("train.py", *arguments, "--learning-rate", 1e-2)
        .stdout.split("validation image: ")[1]
        .splitlines()[0]
    )


def test_init_starts_from_a_generator_file(whole_run, tmp_path):
    photos, out, _ = whole_run
    pretrained = out / "checkpoints" / "generator_pretrained.pth"
    frozen = ["--epochs", 0, "--pretrain-epochs", 1, "--learning-rate", 0]
    words = command(photos, tmp_path / "a", *frozen, "--init", pretrained)
    place = words.index("--blocks")
    run("train.py", *words[:place], *words[place + 2 :])  # the file tells how many blocks there are
    ours, theirs = (
        tensors(path)
        for path in (tmp_path / "a" / "checkpoints" / "generator_last.pth", pretrained)
    )
    assert all(
        torch.equal(ours[name], theirs[name]) for name in ours if name.endswith(("weight", "bias"))
    )
    error = the_error(
        run(
            "train.py",
            *command(photos, tmp_path / "b", "--upscale", 2, "--init", pretrained),
            status=None,
        )
    )
    assert (
        "upscale 4, blocks 1, but this run trains generator srresnet, upscale 2, blocks 1; "
        "pass --upscale 4" in error
    )


def test_a_run_goes_on_without_its_init_file_and_with_that_file_s_blocks(whole_run, tmp_path):
    photos, whole, _ = whole_run
    start = tmp_path / "start.pth"
    shutil.copy(whole / "checkpoints" / "generator_pretrained.pth", start)  # of one block
    words = command(photos, tmp_path / "a", "--init", start)
    place = words.index("--blocks")
    del words[place : place + 2]
    run("train.py", *words, "--epochs", 1)
    start.unlink()
    assert "finished" in run("train.py", *words, "--epochs", 2).stdout
    assert len(rows_of(tmp_path / "a")) == 2


def test_init_discriminator_starts_from_a_trained_one_and_resumes_without_the_file(
    whole_run, tmp_path
):
    photos, whole, _ = whole_run
    checkpoints = whole / "checkpoints"
    held = tensors(checkpoints / "discriminator_last.pth")
    saved = tensors(checkpoints / "last.pth")
    for name, tensor in held.items():
        assert torch.equal(tensor, saved[name.replace("state_dict", "models.discriminator")])

    # The same from either file, without and with an interruption
    start = tmp_path / "start.pth"
    start.write_bytes((checkpoints / "last.pth").read_bytes())
    option = ["--init-discriminator", checkpoints / "discriminator_last.pth"]
    run("train.py", *command(photos, tmp_path / "a", "--epochs", 2, *option))
    option[1] = start
    run("train.py", *command(photos, tmp_path / "b", "--epochs", 1, *option))
    start.unlink()
    run("train.py", *command(photos, tmp_path / "b", "--epochs", 2, *option))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["options"]["init_discriminator"] == str(start)

    # A dry run uses it
    option[1] = checkpoints / "discriminator_last.pth"
    frozen = ["--dry-run", "--learning-rate-d", 0, "--epochs", 1]
    shown = run("train.py", *command(photos, tmp_path / "c", *frozen, *option)).stdout
    assert f"init_discriminator={option[1]}" in shown
    fresh = run("train.py", *command(photos, tmp_path / "c", *frozen)).stdout
    scores = [text.split("'Score_D': ")[1].split(",")[0] for text in (shown, fresh)]
    assert scores[0] != scores[1]


def test_a_network_for_x1_is_trained_used_and_measured(photos, tmp_path):
    options = ["--upscale", 1, "--degradation", "photo-2", "--pretrain-epochs", 1, "--epochs", 1]
    run("train.py", *command(photos, tmp_path / "out", *options))
    for row in rows_of(tmp_path / "out"):
        assert float(row["PSNR"]) > 10 and float(row["Bicubic_PSNR"]) > 10
        assert float(row["Loss_Grid"] or 0) == float(row["Loss_Consistency"] or 0) == 0
    triplet = Image.open(tmp_path / "out" / "validation" / "epoch_002" / "image_0.png")
    assert triplet.width == 3 * 102 + 2 * 4
    file = tmp_path / "out" / "checkpoints" / "generator_last.pth"
    assert generator_file.load(file).architecture["upscale"] == 1

    # Use it, in tiles too, on both backends
    picture = tmp_path / "photo.png"
    picture.write_bytes((photos[1] / "image_0.png").read_bytes())
    weights = ["--weights", file, "--precision", "fp32"]
    run("test_image.py", picture, *weights, "--compare")
    assert Image.open(tmp_path / "photo_x1_compare.png").width == 2 * 102 + 4
    whole = np.asarray(Image.open(tmp_path / "photo_x1.png")).astype(int)
    assert whole.shape == (75, 102, 3)
    tiles = tmp_path / "tiles.png"
    for backend in ("torch", "openvino"):
        words = ["--tile", 16, "--backend", backend, "--out", tiles, "--overwrite"]
        run("test_image.py", picture, *weights, *words)
        assert np.abs(np.asarray(Image.open(tiles)) - whole).max() <= 1

    # Measure it
    degraded = ["prepare_data.py", "degraded", photos[1], "--out", tmp_path / "lr"]
    run(*degraded, "--upscale", 1)
    bench = ["test_benchmark.py", "--hr", photos[1], "--weights", file, "--out", tmp_path / "bench"]
    run(*bench, "--lr", tmp_path / "lr")
    with open(tmp_path / "bench" / "benchmark.csv") as table:
        first = next(csv.DictReader(table))
    assert 10 < float(first["Bicubic_RGB_PSNR"]) < 100
    assert "at x1, bicubic would leave HR as it is" in the_error(run(*bench, status=None))
    error = the_error(run(*degraded, "--upscale", 1, "--degradation", "bicubic", status=None))
    assert "--degradation bicubic would only copy" in error


def test_a_loss_that_is_not_finite_stops_the_run_and_reaches_no_file(whole_run, tmp_path):
    photos, *_ = whole_run
    done = run(
        "train.py", *command(photos, tmp_path, "--epochs", 3, "--learning-rate", 1e30), status=1
    )
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1 and "not finite" in errors[0]
    for path in tmp_path.glob("checkpoints/*.pth"):
        assert all(
            torch.isfinite(tensor).all()
            for tensor in tensors(path).values()
            if tensor.is_floating_point()
        )


def test_columns_that_only_a_part_of_an_epoch_has_are_empty():
    """As when an epoch that an older version began, with other columns, is resumed."""
    progress = Progress()
    progress.add({"Loss_G": torch.tensor(1.0), "Loss_Grid": torch.tensor(8.0)}, 2)
    progress.add({"Loss_G": torch.tensor(4.0), "Loss_New": torch.tensor(8.0)}, 1)
    assert progress.means() == {"Loss_G": 2.0}


def test_weights_that_are_not_finite_are_named_with_epoch_and_step():
    network = torch.nn.Linear(2, 2)
    Progress(epoch=3, batch=7).check_weights(generator=network)
    with torch.no_grad():
        network.weight[0, 0] = float("nan")
    with pytest.raises(
        cli.RunError,
        match=r"weights of the generator not finite in epoch 3, by step 7; .*--learning-rate",
    ):
        Progress(epoch=3, batch=7).check_weights(generator=network)


def test_bad_input_is_one_line_and_leaves_no_run(photos, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "no.pth").write_bytes(b"no weights")
    torch.save(pretrained.load("squeezenet", "random").state_dict, tmp_path / "squeeze.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "squeeze.pth").read_bytes()[:-1000])
    vgg = slice_of_vgg19()
    torch.save(vgg, tmp_path / "vgg.pth")
    torch.save(dict(list(vgg.items())[:-2]), tmp_path / "short.pth")
    vgg16 = ["--perceptual", "vgg16"]
    vgg19 = ["--perceptual", "vgg19"]
    no_weights = ["--pixel-weight", 0, "--adversarial-weight", 0, "--perceptual-weight", 0]
    no_weights += ["--tv-weight", 0]
    cases = [
        (["--train-dir", tmp_path / "none"], "none: no such folder"),
        (["--val-dir", tmp_path / "empty"], "no image in this folder"),
        (["--crop", 88], "use a smaller --crop"),
        (
            ["--degradation", "photo", "--train-lr-dir", photos[0], "--val-lr-dir", photos[1]],
            "with the degradation photo-1: LR is read or made, not both",
        ),
        (["--degradation", "fog"], "invalid choice: 'fog'"),
        (["--crop", 31], "--crop 28 is too small: the networks need at least 32"),
        (["--init", tmp_path / "no.pth"], "no.pth: refused"),
        (["--init-discriminator", tmp_path / "no.pth"], "no.pth: refused"),
        (
            ["--init-discriminator", tmp_path / "none.pth"],
            "--init-discriminator {}: no such file".format(tmp_path / "none.pth"),
        ),
        ([*vgg16, "--vgg-weights", tmp_path / "no.pth"], "no.pth: refused"),
        (
            [*vgg16, "--perceptual-weights", tmp_path / "squeeze.pth"],
            "squeeze.pth: not a state dict of torchvision's VGG16",
        ),
        (
            ["--perceptual-weights", tmp_path / "vgg.pth"],
            "vgg.pth: not a state dict of torchvision's Sq",
        ),
        (
            ["--perceptual-shift", 12],
            "--perceptual-shift 12, --perceptual squeezenet needs at least 33",
        ),
        (
            [*vgg16, "--perceptual-shift", 1],
            "--perceptual-shift 1, --perceptual vgg16 needs at least 33",
        ),
        (["--perceptual-weights", tmp_path / "cut.pth"], "cut.pth"),
        (
            [*vgg19, "--perceptual-weights", tmp_path / "squeeze.pth"],
            "squeeze.pth: not a state dict of VGG19",
        ),
        ([*vgg19, "--perceptual-weights", tmp_path / "cut.pth"], "cut.pth"),
        (
            [*vgg19, "--perceptual-weights", tmp_path / "short.pth"],
            "short.pth: not a state dict of VGG19 or of its first layers up to conv3_1 at least "
            "(it ends after conv2_2)",
        ),
        (
            [*vgg19, "--perceptual-shift", 16],
            "--perceptual-shift 16, --perceptual vgg19 needs at least 33",
        ),
        (["--vgg-weights", tmp_path / "none.pth"], "none.pth: No such file"),
        (["--out", tmp_path / "file" / "out"], "cannot be written"),
        (["--ema", 1], "--ema 1.0 is not a decay"),
        (["--epochs", 0], "leaves nothing to do"),
        (no_weights, "the weights of all losses are 0"),
        (["--out", photos[0] / "out"], "is inside the image folder"),
        (["--seed", 2**63], "--seed 9223372036854775808 is too large"),
        (["--batch-size", 0], "--batch-size: '0' is not a whole number of at least 1"),
        (["--upscale", 5], "invalid choice"),
        (["--upscale", 1], "--upscale 1 with --degradation bicubic: LR would be HR itself"),
        (
            ["--upscale", 1, "--degradation", "photo", "--grid-weight", 1],
            "--grid-weight and --consistency-weight have no meaning with --upscale 1",
        ),
        (
            ["--upscale", 1, "--degradation", "photo", "--generator", "rrdb"],
            "upscale 1: the RRDB generator supports only 4",
        ),
    ]
    for arguments, reason in cases:
        assert reason in the_error(run("train.py", *command(photos, out, *arguments), status=None))
        assert not out.exists()


def test_a_start_without_data_leaves_nothing(tmp_path):
    error = the_error(run("train.py", status=None, cwd=tmp_path))
    assert "DIV2K_train_HR: no such folder; get DIV2K with `python prepare_data.py div2k`" in error
    assert not list(tmp_path.iterdir())


def test_lr_files_for_training_alone_are_refused(photos, tmp_path):
    """Validation would be on bicubic LR, without a word."""
    arguments = command(photos, tmp_path / "out", "--epochs", 1, "--train-lr-dir", tmp_path / "lr")
    error = the_error(run("train.py", *arguments, status=None))
    assert "--train-lr-dir" in error and "--val-lr-dir" in error and not (tmp_path / "out").exists()


def test_a_package_of_unknown_version_does_not_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "_PACKAGES", ("torch", "no-such-package"))
    machine = {"device": "cpu", "threads": 1}
    record = {"options": {}, "degradation": {"version": "bicubic-1"}, "machine": machine}
    run_log.write_config(tmp_path / "config.json", record)
    versions = json.loads((tmp_path / "config.json").read_text())["versions"]
    assert versions["torch"] == torch.__version__ and versions["no-such-package"] is None


def test_the_perceptual_network_and_the_start_are_loaded_once(photos, tmp_path, monkeypatch):
    held = tmp_path / "start.pth"
    generator_file.save(held, Generator(4, 1))
    state = tmp_path / "squeezenet.pth"
    torch.save(pretrained.load("squeezenet", "random").state_dict, state)
    loaded = []
    load_tensors = files.load_tensors
    monkeypatch.setattr(
        files, "load_tensors", lambda path: (loaded.append(Path(path).name), load_tensors(path))[1]
    )
    words = ["--epochs", 1, "--perceptual-weights", state]
    words = command(photos, tmp_path / "out", *words, "--init", held)
    train.main(train.get_args_parser().parse_args(list(map(str, words))))
    assert sorted(loaded) == ["squeezenet.pth", "start.pth"]


def test_bad_images_stop_the_run_by_name_unless_skipped(photos, tmp_path):
    (photos[0] / "cut.png").write_bytes((photos[0] / "image_0.png").read_bytes()[:2000])
    Image.new("RGB", (20, 20)).save(photos[0] / "tiny.png")
    arguments = command(photos, tmp_path / "out", "--epochs", 1)
    assert "1 image cannot be read: cut.png" in the_error(run("train.py", *arguments, status=None))
    done = run("train.py", *arguments, "--skip-bad-images")
    assert "too small: tiny.png" in done.stdout and "cannot be read: cut.png" in done.stdout


def test_a_full_disk_is_one_line_and_keeps_the_older_state(whole_run, tmp_path):
    """A limit on file sizes stands in for the disk: checkpoints do not fit, smaller files do."""
    photos, *_ = whole_run
    out = tmp_path / "out"
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 10**6, 8 * 10**6))"
    done = run_limited(tmp_path, limit, *command(photos, out, "--epochs", 1))
    assert done.returncode == 2, done.stderr
    assert [
        line
        for line in done.stderr.splitlines()
        if "cannot be written (File too large)" in line and "last.pth" in line
    ]
    assert not (out / "checkpoints" / "last.pth").exists() and not list(out.rglob("*.tmp"))
    generator_file.load(out / "checkpoints" / "generator_last.pth")


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate_at(step, 100, 2.0, "cosine", 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0) and 0 < rates[99] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate_at(99, 100, 2.0, "constant", 10) == 2.0


@pytest.mark.parametrize(
    "script",
    [
        "train.py",
        "test_image.py",
        "test_benchmark.py",
        "plot_statistics.py",
        "prepare_data.py",
        "export_model.py",
    ],
)
def test_help_teaches_and_bad_options_are_refused(script):
    assert f"python {script}" in run(script, "--help").stdout
    run(script, "--no-such-option", status=2)


def test_importing_a_script_does_nothing(tmp_path):
    scripts = [path.stem for path in ROOT.glob("*.py")]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import " + ", ".join(scripts)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not os.listdir(tmp_path)


def test_bf16_resumes_bit_for_bit(photos, tmp_path):
    options = ["--epochs", 2, "--ema", 0.9, "--perceptual-weight", 0, "--precision", "bf16"]
    one, other = tmp_path / "a", tmp_path / "b"
    run("train.py", *command(photos, one, *options))
    assert_last_epoch_repeats(one, other, *command(photos, other, *options))


def test_an_adversarial_run_in_bf16_ends_where_one_in_fp32_does(photos, tmp_path):
    """12 updates from one start give the same quality and balance, though not the same bits."""
    training = ["--init", ROOT / "weights" / "srresnet_x4.pth", "--blocks", 16, "--batch-size", 2]
    training += ["--crops-per-image", 3, "--epochs", 2, "--val-every", 2]
    training += ["--learning-rate", 1e-4, "--ema", 0.98, "--perceptual-weight", 0]
    last = {}
    for precision in ("fp32", "bf16"):
        run("train.py", *command(photos, tmp_path / precision, *training, "--precision", precision))
        last[precision] = {
            name: float(value) for name, value in rows_of(tmp_path / precision)[-1].items() if value
        }
    fp32, bf16 = last["fp32"], last["bf16"]
    assert fp32["Loss_Pixel"] != bf16["Loss_Pixel"]  # it did compute in bf16
    assert (
        bf16["PSNR"] == pytest.approx(fp32["PSNR"], abs=0.1) and fp32["PSNR"] > fp32["Bicubic_PSNR"]
    )
    assert bf16["SSIM"] == pytest.approx(fp32["SSIM"], abs=0.005)
    for score in ("Score_D", "Score_G"):
        assert bf16[score] == pytest.approx(fp32[score], abs=0.05)


def test_tensorboard_has_the_csv_and_the_triplets_also_across_a_restart(photos, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = command(
        photos, tmp_path / "run", "--pretrain-epochs", 1, "--val-triplets", 1, "--tensorboard"
    )
    options += ["--perceptual-weight", 0]
    run("train.py", *options, "--epochs", 1)
    run("train.py", *options, "--epochs", 2)
    events = EventAccumulator(
        str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0}
    ).Reload()
    rows = rows_of(tmp_path / "run")
    for tag, column in (
        ("loss/Loss_G", "Loss_G"),
        ("validation/PSNR", "PSNR"),
        ("score/Score_D", "Score_D"),
    ):
        expected = [(int(row["Epoch"]), float(row[column])) for row in rows if row[column]]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [
            (epoch, pytest.approx(value, rel=1e-5)) for epoch, value in expected
        ]
    triplets = events.Images("validation/image_0")
    assert [event.step for event in triplets] == [1, 2, 3]
    picture = Image.open(tmp_path / "run" / "validation" / "epoch_003" / "image_0.png")
    assert (triplets[-1].width, triplets[-1].height) == picture.size


def test_tensorboard_that_is_not_installed_is_one_line(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    words = command(photos, tmp_path / "run", "--epochs", 1, "--tensorboard")
    with pytest.raises(cli.UserError, match="pip install tensorboard"):
        train.main(train.get_args_parser().parse_args(list(map(str, words))))


def test_the_multiscale_discriminator_trains_resumes_and_refuses_what_it_cannot_take(
    photos, tmp_path
):
    options = ["--discriminator", "multiscale", "--perceptual-weight", 0, "--batch-size", 4]
    arguments = command(photos, tmp_path / "out", "--epochs", 1, *options)
    assert "need at least 68" in the_error(run("train.py", *arguments, "--crop", 64, status=None))
    run("train.py", *arguments, "--crop", 68)
    done = run("train.py", *arguments, "--crop", 68, "--epochs", 2)
    assert "15,646,275" in done.stdout and len(rows_of(tmp_path / "out")) == 2
