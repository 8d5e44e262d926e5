import argparse

import pytest
import torch
from conftest import run

import inference
import metrics
import train
from dataloader import ValDatasetFromFolder
from model import Generator
from options import get_args_parser
from utils import cli, images, pretrained, statistics
from validation import validate


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(4, 1)


def options(*words) -> argparse.Namespace:
    return get_args_parser().parse_args(list(map(str, words)))


@pytest.fixture
def squeezenet(tmp_path, monkeypatch):
    """An empty hub folder and, outside of it, a file of SqueezeNet with untrained weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.save(pretrained.load("squeezenet", "random").state_dict, tmp_path / "squeezenet.pth")
    return tmp_path / "squeezenet.pth"


def test_scores_are_the_means_of_the_metrics_of_each_image(photos, generator, squeezenet):
    networks = metrics.distance_networks(weights=[pretrained.load("squeezenet", str(squeezenet))])
    dataset = ValDatasetFromFolder(photos[1], 4)
    scores = validate(generator, dataset, "fp32", None, 0, cli.StopRequest(), networks)
    expected = []
    for _name, lr, _bicubic, hr in dataset:
        sr = images.to_tensor(inference.upscale(inference.prepared(generator), images.to_array(lr)))
        expected.append(metrics.beyond_psnr(sr, hr, 4, networks))
    for name in ("Distance", "Detail", "Colour", "Grid"):
        assert scores[name] == pytest.approx(
            sum(row[name] for row in expected) / len(dataset), rel=1e-5
        )


def test_texture_is_measured_without_any_network(photos, generator):
    scores = validate(
        generator, ValDatasetFromFolder(photos[1], 4), "fp32", None, 0, cli.StopRequest()
    )
    assert {"Detail", "Colour", "Grid"} <= scores.keys() and not {
        "Distance",
        "LPIPS",
    } & scores.keys()


def test_distance_is_measured_with_the_runs_own_squeezenet_or_one_that_is_there_already(squeezenet):
    own = options("--perceptual", "squeezenet", "--perceptual-weights", squeezenet)
    loaded = pretrained.load("squeezenet", str(squeezenet))
    assert list(train.distance_networks(own, loaded)) == ["Distance"]
    untrained = pretrained.load("squeezenet", "random")
    others = (None, untrained, pretrained.load("vgg16", "random"))
    assert not any(train.distance_networks(options(), other) for other in others)
    torch_home = squeezenet.parent / "torch"
    assert not torch_home.exists()
    checkpoints = torch_home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    state = {name: tensor + 1 for name, tensor in torch.load(squeezenet).items()}
    torch.save(state, checkpoints / "squeezenet1_1-b8a52dc0.pth")
    for other in others:
        distance = train.distance_networks(options(), other)["Distance"]
        weights = distance.network.features.state_dict()
        assert torch.equal(weights["0.weight"], state["0.weight"])


def test_a_run_with_squeezenet_records_and_shows_its_distance(photos, tmp_path, squeezenet):
    small = [
        "--crop",
        32,
        "--batch-size",
        3,
        "--blocks",
        1,
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--val-triplets",
        0,
    ]
    words = [
        "--train-dir",
        photos[0],
        "--val-dir",
        photos[1],
        "--epochs",
        1,
        "--perceptual",
        "squeezenet",
        *small,
    ]
    done = run("train.py", *words, "--perceptual-weights", squeezenet, "--out", tmp_path / "out")
    row = statistics.read_statistics(tmp_path / "out" / "statistics.csv").iloc[0]
    scores = row[["Distance", "Detail", "Colour", "Grid"]]
    assert (scores > 0).all() and f"distance {row['Distance']:.3f}" in done.stdout


@pytest.mark.parametrize(("avoids", "expected"), [(False, "bf16"), (True, "fp32")])
def test_a_generator_that_avoids_bf16_is_not_validated_in_it(
    photos, generator, monkeypatch, avoids, expected
):
    used = []

    def upscale(_generator, lr, precision):
        used.append(precision)
        return lr.repeat(4, 0).repeat(4, 1)

    monkeypatch.setattr(inference, "upscale", upscale)
    generator.avoid_bf16 = avoids
    dataset = ValDatasetFromFolder(photos[1], 4)
    validate(generator, dataset, "bf16", None, 0, cli.StopRequest())
    assert set(used) == {expected}
