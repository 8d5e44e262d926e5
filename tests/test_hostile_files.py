"""Untrusted files give a good result or a clear refusal, in bounded time and memory."""

import json
import resource
import shutil
import signal
import struct
import time
import zipfile

import corpus
import pytest
import torch
from conftest import run, the_error
from PIL import Image

import test_image
from dataloader import ValDatasetFromFolder
from esrgan import RRDBGenerator
from model import Generator
from utils import cli, files, generator_file, images

COUNT = 600


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder of mutated picture files."""
    folder = tmp_path_factory.mktemp("broken")
    for name, content in corpus.mutated(COUNT):
        (folder / name).write_bytes(content)
    return folder


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_corpus_is_what_it_says(tmp_path):
    names = [name for name, _ in corpus.mutated(COUNT)]
    assert {name.rsplit(".")[1] for name in names} == set(corpus.FORMATS)
    kinds = {name[6:].split(".")[0] for name in names}
    assert kinds == {"flip", "cut", "header", "size", "splice", "repeat"}
    for suffix, content in corpus.originals():
        (tmp_path / f"a.{suffix}").write_bytes(content)
        assert images.read_picture(tmp_path / f"a.{suffix}").rgb.shape == (20, 24, 3)


def test_mutated_images_are_enlarged_or_refused(broken, tmp_path):
    generator = Generator(2, 1).eval()
    words = ["none", "--max-pixels", "100000", "--precision", "fp32"]
    args = test_image.get_args_parser().parse_args(words)
    good = 0
    refused = 0
    before = peak()
    slowest = 0.0
    for source in sorted(broken.iterdir()):
        began = time.monotonic()
        signal.alarm(20)  # a hang ends the test
        try:
            test_image.enlarge(test_image.Engines(generator), source, tmp_path / "out.png", args)
            with Image.open(tmp_path / "out.png") as result:
                result.load()
            good += 1
        except (ValueError, OSError) as error:
            assert str(source) in str(error) and "\n" not in str(error), error
            refused += 1
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - began)
    assert good + refused == COUNT
    assert good > 50
    assert refused > 200
    assert slowest < 10
    assert peak() - before < 2**30
    assert not list(tmp_path.glob(".srgan-*"))


def test_mutated_images_in_a_dataset_are_left_out(broken, tmp_path):
    shutil.copytree(broken, tmp_path / "images")
    Image.new("RGB", (24, 20)).save(tmp_path / "images" / "good.png")
    cache = tmp_path / "cache"
    cached = ValDatasetFromFolder(tmp_path / "images", 2, cache_folder=cache, skip_bad=True)
    assert len(cached) + len(cached.store.bad) + len(cached.too_small) == COUNT + 1
    assert len(cached.store.bad) > 200
    names = [name for name, *_ in cached]
    assert "good" in names
    assert len(set(names)) == len(names)


def test_mutated_images_through_the_command_line(broken, tmp_path):
    (tmp_path / "some").mkdir()
    for path in sorted(broken.iterdir())[::12]:
        shutil.copy(path, tmp_path / "some")
    Image.new("RGB", (24, 20)).save(tmp_path / "some" / "good.png")
    generator_file.save(tmp_path / "x2.pth", Generator(2, 1))
    options = ["--weights", tmp_path / "x2.pth", "--out", tmp_path / "out"]
    options += ["--max-pixels", 100_000]
    done = run("test_image.py", tmp_path / "some", *options, status=2)
    lines = [line for line in done.stderr.splitlines() if line.startswith("test_image.py: error: ")]
    assert "Traceback" not in done.stderr
    assert len(lines) > 10
    assert "images could not be enlarged" in lines[-1]
    assert (tmp_path / "out" / "good_x2.png").exists()


def test_weight_files_that_claim_absurd_things_take_no_memory(tmp_path):
    before = peak()

    # safetensors whose header is wrong
    header = b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    cases = {
        "header.safetensors": struct.pack("<Q", 2**40) + b"{}",
        "shape.safetensors": struct.pack("<Q", len(header)) + header,
        "short.safetensors": b"\x01",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)

    # Networks that are absurdly large, or none
    good = Generator(4, 1)
    for name, changes in {
        "blocks": {"blocks": 10**6},
        "negative": {"blocks": -1},
        "text": {"blocks": "many"},
        "upscale": {"upscale": 10**9},
        "features": {"generator": "rrdb", "features": 10**9, "growth": 10**9, "blocks": 1},
    }.items():
        content = as_generator_file({**good.architecture, **changes}, good.state_dict())
        files.save_tensors(tmp_path / f"{name}.pth", content)

    # A zip bomb
    generator_file.save(tmp_path / "stored.tmp", good)
    with zipfile.ZipFile(tmp_path / "stored.tmp") as stored:
        members = {member: stored.read(member) for member in stored.namelist()}
    (tmp_path / "stored.tmp").unlink()
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for member, data in members.items():
            packed.writestr(member, bytes(50_000_000) if member.endswith("/data/0") else data)

    for path in list(tmp_path.iterdir()):
        began = time.monotonic()
        with pytest.raises(ValueError, match=path.name):
            generator_file.load(path)
        assert time.monotonic() - began < 5
    assert peak() - before < 2**28
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    weights = ["--weights", tmp_path / "blocks.pth"]
    assert "blocks.pth" in the_error(
        run("test_image.py", tmp_path / "a.png", *weights, status=None)
    )


def as_generator_file(architecture: dict, state: dict) -> dict:
    """The content of a generator file."""
    return {"format": files.GENERATOR_FORMAT, **architecture, "state_dict": state}


def safetensors_file(header: bytes, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + content


def test_endless_nesting_is_refused_in_one_line(tmp_path):
    # In safetensors: in the header, and in the metadata
    nested = "[" * 100_000
    contents = [safetensors_file(nested.encode()), safetensors_file(b'{"a":' * 100_000)]
    one = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for metadata in (
        {"x": nested},
        {"format": '"srgan-generator-1"', "generator": '"srresnet"', "blocks": nested},
    ):
        header = b'{"__metadata__":%b,%b}' % (json.dumps(metadata).encode(), one)
        contents.append(safetensors_file(header, b"\0\0\x80\x3f"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for index, content in enumerate(contents):
        path = tmp_path / f"{index}.safetensors"
        path.write_bytes(content)
        with pytest.raises(cli.UserError, match=path.name):
            generator_file.load(path)
    done = run("test_image.py", tmp_path / "a.png", "--weights", path, status=None)
    assert "3.safetensors" in the_error(done)

    # In PyTorch's format
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    content = as_generator_file(Generator(2, 1).architecture, {"a": torch.ones(1)})
    for name in ("generator", "upscale", "blocks", "state_dict", "epoch"):
        save_nested(tmp_path / f"{name}.pth", {**content, name: deep})
        with pytest.raises(cli.UserError, match=rf"{name}\.pth: [^\n]+$"):
            generator_file.load(tmp_path / f"{name}.pth")


def save_nested(path, content: dict) -> None:
    """Save in PyTorch's format what its pickler cannot: a list that is nested too deeply."""
    flat = {name: [] if isinstance(value, list) else value for name, value in content.items()}
    torch.save(flat, path)
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            if member.endswith("data.pkl"):
                assert data.count(b"]q") == 1  # EMPTY_LIST, BINPUT
                # Opened one in another, then appended to each other
                data = data.replace(b"]q", b"]" * 100_000 + b"a" * 99_999 + b"q")
            archive.writestr(member, data)


def test_expanded_and_tied_tensors_take_no_memory(tmp_path):
    before = peak()

    # A network of many gigabytes whose weights are all one number
    with torch.device("meta"):
        generator = RRDBGenerator(4, 1, 16384, 8192)
    one = torch.ones(1)
    state = {name: one.expand(weight.shape) for name, weight in generator.state_dict().items()}
    torch.save(as_generator_file(generator.architecture, state), tmp_path / "expanded.pth")
    assert (tmp_path / "expanded.pth").stat().st_size < 10_000
    assert sum(weight.numel() for weight in state.values()) > 10**10

    # A network of 150 MB whose weights share 300 kB
    with torch.device("meta"):
        generator = Generator(4, 500)
    values = torch.ones(36_864 * 4, dtype=torch.float16)
    state = {}
    for name, weight in generator.state_dict().items():
        if weight.dim():
            state[name] = values[: weight.numel()].view(weight.shape)
        else:  # BN's count of batches
            state[name] = torch.ones((), dtype=torch.int64)
    torch.save(as_generator_file(generator.architecture, state), tmp_path / "tied.pth")

    for name in ("expanded", "tied"):
        with pytest.raises(cli.UserError, match=rf"{name}\.pth"):
            generator_file.load(tmp_path / f"{name}.pth")
    assert peak() - before < 2**27


def test_mutated_weight_files_are_loaded_whole_or_refused(tmp_path):
    """Flipped bits are noticed in PyTorch's format, which has checksums, unlike safetensors."""
    generator_file.save(tmp_path / "good.pth", Generator(2, 1))
    good = (tmp_path / "good.pth").read_bytes()
    expected = files.load_tensors(tmp_path / "good.pth")["state_dict"]
    refused = 0
    for data in corpus.damaged(good, 150):
        (tmp_path / "a.pth").write_bytes(data)
        try:
            loaded = generator_file.load(tmp_path / "a.pth").state_dict()
        except ValueError as error:
            assert "a.pth" in str(error)
            assert "\n" not in str(error)
            refused += 1
        else:  # changed in a byte that says nothing, such as padding
            assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert refused > 100
