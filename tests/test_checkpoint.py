import copy
import inspect
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run, tensors

import networks
import options
import train
from esrgan import RRDBGenerator
from model import Generator
from utils import checkpoint, cli, files, generator_file


@pytest.fixture
def generator() -> Generator:
    return Generator(3, 2).eval()


@pytest.mark.parametrize("name", ["g.pth", "g.safetensors"])
def test_a_generator_file_says_what_it_holds(tmp_path, generator, name):
    generator_file.save(tmp_path / name, generator, epoch=3)
    loaded = generator_file.load(tmp_path / name)
    assert loaded.architecture == {"generator": "srresnet", "upscale": 3, "blocks": 2}
    assert not loaded.training
    lr = torch.rand(1, 3, 9, 9)
    assert torch.equal(loaded(lr), generator(lr))
    assert os.listdir(tmp_path) == [name]


def test_the_file_is_plain_data_of_the_documented_format(tmp_path, generator):
    generator_file.save(tmp_path / "g.pth", generator)
    loaded = torch.load(tmp_path / "g.pth", weights_only=True)
    assert {name: loaded[name] for name in ("format", "generator", "upscale", "blocks")} == {
        "format": "srgan-generator-1",
        "generator": "srresnet",
        "upscale": 3,
        "blocks": 2,
    }
    assert loaded["state_dict"].keys() == generator.state_dict().keys()


def test_half_precision_files_are_read_as_float32(tmp_path, generator):
    state = {n: t.half() if t.is_floating_point() else t for n, t in generator.state_dict().items()}
    files.save_tensors(
        tmp_path / "g.pth",
        {"format": "srgan-generator-1", **generator.architecture, "state_dict": state},
    )
    loaded = generator_file.load(tmp_path / "g.pth")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


def test_files_that_do_not_fit_are_refused(tmp_path, generator):
    good = {
        "format": "srgan-generator-1",
        **generator.architecture,
        "state_dict": generator.state_dict(),
    }
    infinite = {**good["state_dict"], "tail.bias": torch.tensor([0, 1, float("inf")])}
    cases = {
        "no generator file": ([1, 2], "not a generator file"),
        "a state dict alone": (good["state_dict"], "not a generator file"),
        "a checkpoint": ({"format": "srgan-checkpoint-1"}, "generator_last.pth"),
        "a discriminator": ({"format": "srgan-discriminator-1"}, "generator_last.pth"),
        "another kind": ({**good, "generator": "other"}, "unknown generator 'other'"),
        "another scale": (
            {**good, "upscale": 4},
            r"do not fit.*upsample\.0\.conv\.weight has the shape \(576, 64, 3, 3\)",
        ),
        "a scale that is none": ({**good, "upscale": 5}, "upscale 5"),
        "absurd": ({**good, "blocks": 10**6}, "1000000 blocks"),
        "no block": ({**good, "blocks": 0}, "blocks 0 is less than 1"),
        "blocks of no kind": ({**good, "blocks": [[2]]}, "neither a number nor text"),
        "no name for a network": ({**good, "generator": ["srresnet"]}, "unknown generator"),
        "sizes that no memory holds": (
            {**good, "generator": "rrdb", "upscale": 4, "features": 10**9, "growth": 10**9},
            "built",
        ),
        "numbers for names": (
            {**good, "state_dict": {**good["state_dict"], 1: torch.ones(1)}},
            "not a generator file",
        ),
        "a tensor missing": (
            {**good, "state_dict": without(good["state_dict"], "tail.bias")},
            "tail.bias",
        ),
        "a tensor too many": (
            {**good, "state_dict": {**good["state_dict"], "trunk.9.extra": torch.ones(1)}},
            "no trunk.9.extra",
        ),
        "not tensors": ({**good, "state_dict": dict.fromkeys(good["state_dict"], 1)}, "do not fit"),
        "not finite": (
            {**good, "state_dict": infinite},
            "tail.bias has values that are not finite",
        ),
    }
    for what, (value, reason) in cases.items():
        torch.save(value, tmp_path / "g.pth")
        with pytest.raises(ValueError, match=rf"g\.pth: .*{reason}"):
            generator_file.load(tmp_path / "g.pth")
            pytest.fail(what)


@pytest.mark.parametrize("name", networks.GENERATORS)
def test_architecture_is_the_kind_and_the_arguments_of_the_constructor(tmp_path, name):
    network = networks.GENERATORS[name]
    arguments = {
        name: parameter.default for name, parameter in inspect.signature(network).parameters.items()
    }
    small = {
        argument: value if argument == "upscale" else 3 for argument, value in arguments.items()
    }
    generator = network(**small)
    assert generator.architecture == {"generator": name, **small}
    for file in ("g.pth", "g.safetensors"):
        generator_file.save(tmp_path / file, generator, epoch=7, validation_psnr_db=None)
        loaded = generator_file.load(tmp_path / file)
        assert type(loaded) is network and loaded.architecture == generator.architecture


class Narrow(Generator):
    """A network with an argument that no generator of the repository has."""

    def __init__(self, upscale: int = 4, blocks: int = 8, tail_channels: int = 64):
        super().__init__(upscale, blocks)
        self.tail = torch.nn.Conv2d(tail_channels, 3, 9, padding=4)
        self.tail_channels = tail_channels

    @property
    def architecture(self):
        return {
            "generator": "narrow",
            "upscale": self.upscale,
            "blocks": self.blocks,
            "tail_channels": self.tail_channels,
        }


def test_a_new_constructor_argument_is_saved_and_older_files_get_its_default(tmp_path, monkeypatch):
    monkeypatch.setitem(networks.GENERATORS, "narrow", Narrow)
    generator_file.save(tmp_path / "g.pth", Narrow(2, 1, 32))
    assert generator_file.load(tmp_path / "g.pth").architecture["tail_channels"] == 32
    old = {"generator": "narrow", "upscale": 2, "blocks": 1}
    torch.save(
        {"format": "srgan-generator-1", **old, "state_dict": Narrow(2, 1).state_dict()},
        tmp_path / "old.pth",
    )
    assert generator_file.load(tmp_path / "old.pth").architecture["tail_channels"] == 64


def test_a_bug_is_not_reported_as_a_bad_file(tmp_path, monkeypatch, generator):
    generator_file.save(tmp_path / "g.pth", generator)
    monkeypatch.setattr(files, "misfit", lambda *_: {}["typo"])
    with pytest.raises(KeyError, match="typo"):
        generator_file.load(tmp_path / "g.pth")
    monkeypatch.setattr(files, "load_tensors", lambda _path: torch.ones(2) @ torch.ones(3))
    checkpoint.save_checkpoint(tmp_path, {})
    with pytest.raises(RuntimeError, match="size"):
        checkpoint.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("held", "trained", "reason"),
    [
        (Generator(3, 2), Generator(4, 2), "upscale 4, blocks 2; pass --upscale 3"),
        (Generator(3, 2), Generator(2, 3), "; pass --upscale 3 --blocks 2"),
        (Generator(4, 2), Generator(4, 1), "; pass --blocks 2"),
        (RRDBGenerator(4, 2, 4, 4), RRDBGenerator(4, 1, 4, 4), "; pass --blocks 2"),
        (
            RRDBGenerator(4, 1, 4, 4),
            RRDBGenerator(4, 2, 4, 4),
            "; pass --blocks 1",
        ),  # zero residuals would not be the identity
        (
            RRDBGenerator(4, 1, 4, 4),
            RRDBGenerator(4, 1, 8, 4),
            "features 8, growth 4; pass --features 4",
        ),
        (
            RRDBGenerator(4, 1, 4, 4),
            Generator(4, 2),
            "; pass --generator rrdb --blocks 1 --features 4 --growth 4",
        ),
        (Generator(4, 1), RRDBGenerator(4, 2, 4, 4), "; pass --generator srresnet --blocks 1"),
    ],
)
def test_a_file_from_which_the_run_cannot_start_is_refused_with_a_way_on(
    tmp_path, held, trained, reason
):
    generator_file.save(tmp_path / "g.pth", held)
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(cli.UserError, match=rf"g\.pth: holds .*, but this run trains .*{reason}$"):
        generator_file.copy_weights(
            generator_file.load(tmp_path / "g.pth"), trained, tmp_path / "g.pth"
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


@pytest.mark.parametrize("make", [lambda: Generator(2, 2), lambda: RRDBGenerator(4, 1, 4, 4)])
def test_a_run_starts_with_the_weights_of_the_file(tmp_path, make, capsys):
    held, trained = make(), make()
    generator_file.save(tmp_path / "g.pth", held)
    generator_file.copy_weights(
        generator_file.load(tmp_path / "g.pth"), trained, tmp_path / "g.pth"
    )
    assert all(
        torch.equal(tensor, held.state_dict()[name])
        for name, tensor in trained.state_dict().items()
    )
    assert all(parameter.requires_grad for parameter in trained.parameters()) and trained.training
    assert capsys.readouterr().out == ""


def models_of(blocks: int, init: Path, *more: str) -> train.Models:
    """The networks of a run on the CPU that starts from a file."""
    fixed = [
        "--blocks",
        str(blocks),
        "--vgg-weights",
        "random",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    args = train.get_args_parser().parse_args([*fixed, "--init", str(init), *more])
    return train.Models(args, generator_file.load(init))


def test_added_blocks_start_as_the_identity_and_learn(capsys):
    file = ROOT / "weights" / "srresnet_x4.pth"
    held, models = (
        generator_file.load(file).to(memory_format=torch.channels_last),
        models_of(18, file, "--ema", "0.9"),
    )
    assert (
        capsys.readouterr().out
        == f"--init {file} has 16 of the 18 blocks; the rest start as the identity\n"
    )
    torch.manual_seed(0)
    lr, hr = torch.rand(2, 3, 12, 10) * 2 - 1, torch.rand(2, 3, 48, 40) * 2 - 1
    for network in (models.generator, models.output_generator):
        for training in (False, True):
            with torch.no_grad():
                ours, expected = (copy.deepcopy(net).train(training)(lr) for net in (network, held))
            assert torch.equal(
                ours, expected
            )  # bit for bit: the residuals are multiplied by exactly 0
    added = {
        name: value
        for name, value in models.generator.trunk[16:].named_parameters()
        if name.endswith("weight")
    }
    models.optimizer_g.param_groups[0]["lr"] = 1e-3
    train.pixel_step(models, lr, hr)
    assert {name for name, value in added.items() if value.grad.any()} == {
        "16.bn2.weight",
        "17.bn2.weight",
    }
    train.pixel_step(
        models, lr, hr
    )  # now that the residuals are not zero, everything in them learns
    assert all(value.grad.any() for value in added.values())


def test_a_run_starts_from_a_file_with_fewer_blocks(photos, tmp_path):
    file = tmp_path / "g.pth"
    generator_file.save(file, Generator(4, 1))
    command = [
        "--train-dir",
        photos[0],
        "--val-dir",
        photos[1],
        "--crop",
        32,
        "--batch-size",
        2,
        "--blocks",
        3,
        "--init",
        file,
    ]
    command += [
        "--pretrain-epochs",
        1,
        "--epochs",
        0,
        "--learning-rate",
        0,
        "--precision",
        "fp32",
        "--out",
        tmp_path / "out",
    ]
    done = run("train.py", *command)
    assert (
        f"--init {file} has 1 of the 3 blocks; the rest start as the identity"
        in done.stdout.splitlines()
    )
    held, deeper = (
        tensors(path) for path in (file, tmp_path / "out" / "checkpoints" / "generator_last.pth")
    )
    parameters = [name for name in held if name.endswith(("weight", "bias"))]
    assert parameters and all(torch.equal(deeper[name], held[name]) for name in parameters)
    assert (
        not deeper[".state_dict.trunk.2.bn2.weight"].any()
        and ".state_dict.trunk.3.bn2.weight" not in deeper
    )


def test_the_checkpoint_before_is_used_when_the_last_is_damaged(tmp_path):
    assert checkpoint.load_checkpoint(tmp_path) == (None, "")
    for step in (1, 2):
        checkpoint.save_checkpoint(
            tmp_path, {"step": step, "tensor": torch.full((10_000,), float(step))}
        )
    assert checkpoint.load_checkpoint(tmp_path)[0]["step"] == 2
    damaged = bytearray((tmp_path / "last.pth").read_bytes())
    damaged[len(damaged) // 3] ^= 1
    (tmp_path / "last.pth").write_bytes(damaged)
    state, problem = checkpoint.load_checkpoint(tmp_path)
    assert state["step"] == 1 and "last.pth" in problem
    (tmp_path / "previous.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"last\.pth.*previous\.pth"):
        checkpoint.load_checkpoint(tmp_path)


def test_a_state_that_is_not_finite_touches_nothing(tmp_path):
    checkpoint.save_checkpoint(tmp_path, {"t": torch.ones(1)})
    with pytest.raises(cli.RunError):
        checkpoint.save_checkpoint(tmp_path, {"t": torch.tensor([float("nan")])})
    assert os.listdir(tmp_path) == ["last.pth"]


def test_options_that_differ_are_named():
    saved = {"crop": 88, "out": "a", "seed": 0}
    options.check_same_options(saved, {"crop": 88, "out": "b", "seed": 0})
    with pytest.raises(
        ValueError, match=r"--batch-size \(was None, is 3\), --crop \(was 88, is 44\)"
    ):
        options.check_same_options(saved, {"crop": 44, "out": "b", "seed": 0, "batch_size": 3})


def test_images_that_differ_are_named():
    saved = [("a", 10, 5), ("b", 10, 5), ("c", 10, 0)]
    checkpoint.check_same_images("training", saved, [("a", 11, 5), ("b", 10, 0), ("c", 10, 7)])
    with pytest.raises(ValueError, match="a has changed, b is gone, d is new"):
        checkpoint.check_same_images("training", saved, [("a", 10, 6), ("c", 10, 0), ("d", 1, 1)])
