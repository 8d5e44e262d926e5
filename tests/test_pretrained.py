"""Where the perceptual networks' ImageNet weights come from."""

import hashlib

import archives
import pytest
import torch
from conftest import run

from generator_loss_functions import SqueezeNetFeatures, VGG16Features
from utils import files, pretrained
from utils.pretrained import import_torchvision

FEATURES = {"vgg16": VGG16Features, "squeezenet": SqueezeNetFeatures}
NETWORKS = pytest.mark.parametrize("network", FEATURES)


@NETWORKS
def test_layers_are_those_of_torchvision(network):
    models = import_torchvision().models
    ours = {n: t.shape for n, t in pretrained.load(network, "random").state_dict.items()}
    with torch.device("meta"):
        theirs = (models.vgg16 if network == "vgg16" else models.squeezenet1_1)(
            weights=None
        ).features
        old = models.squeezenet1_0(weights=None).features
    assert ours == {n: t.shape for n, t in theirs.state_dict().items()}
    if network == "squeezenet":
        layers = pretrained.squeezenet_layers(torch.empty(96, 3, 7, 7)).state_dict()
        assert {n: t.shape for n, t in layers.items()} == {
            n: t.shape for n, t in old.state_dict().items()
        }


@NETWORKS
def test_random_features_are_always_the_same_and_leave_the_global_generator_alone(network):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = FEATURES[network](pretrained.load(network, "random").state_dict).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    second = FEATURES[network](pretrained.load(network, "random").state_dict).state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


@NETWORKS
@pytest.mark.parametrize("prefix", ["features.", ""])
def test_weights_come_from_a_state_dict_file(tmp_path, network, prefix):
    state = pretrained.load(network, "random").state_dict
    path = tmp_path / "weights.pth"
    files.save_tensors(path, {f"{prefix}{name}": tensor for name, tensor in state.items()})
    loaded = pretrained.load(network, str(path))
    read = loaded.state_dict
    assert read.keys() == state.keys() and all(
        torch.equal(read[name], tensor) for name, tensor in state.items()
    )
    assert loaded.network == network
    assert loaded.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert pretrained.load(network, "random").fingerprint == "random"


def test_either_version_of_squeezenet_is_recognised(tmp_path):
    """Whole files of torchvision's, classifier included."""
    for version, stages in (("1_0", (1, 4, 7, 8, 9, 10, 12)), ("1_1", (1, 4, 7, 9, 10, 11, 12))):
        network = getattr(import_torchvision().models, f"squeezenet{version}")(weights=None)
        files.save_tensors(tmp_path / "whole.pth", network.state_dict())
        features = SqueezeNetFeatures(
            pretrained.load("squeezenet", str(tmp_path / "whole.pth")).state_dict
        )
        assert features.stages == stages
        assert torch.equal(features.features[0].weight, network.features[0].weight)


def test_files_of_other_weights_are_refused(tmp_path):
    vgg, squeezenet = (pretrained.load(network, "random").state_dict for network in FEATURES)
    missing = {name: tensor for name, tensor in squeezenet.items() if name != "12.squeeze.bias"}
    misshapen = squeezenet | {"12.squeeze.bias": torch.zeros(3)}
    cases = [
        ("vgg16", {"features.0.weight": torch.zeros(3)}, "VGG16 .*features.0.weight"),
        ("vgg16", squeezenet, "VGG16 .*features.0.bias|VGG16 .*features.2.weight"),
        ("squeezenet", vgg, r"SqueezeNet \(features.3.squeeze.weight"),
        ("squeezenet", missing, "SqueezeNet .*features.12.squeeze.bias"),
        ("squeezenet", misshapen, r"SqueezeNet .*features.12.squeeze.bias of shape \(64,\)"),
        ("squeezenet", [torch.zeros(3)], "SqueezeNet"),
        ("squeezenet", {"0.weight": "text"}, "SqueezeNet"),
    ]
    path = tmp_path / "other.pth"
    for network, content, reason in cases:
        files.save_tensors(path, content)
        with pytest.raises(
            ValueError, match=rf"other\.pth: not a state dict of torchvision's {reason}"
        ):
            pretrained.load(network, str(path))


@NETWORKS
def test_without_network_the_error_names_the_ways_on(tmp_path, monkeypatch, network):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    ways = r"no route to host.*--perceptual-weights FILE.*"
    ways += r"--perceptual-weight 0.*--perceptual-weights random"
    with pytest.raises(ValueError, match=ways):
        pretrained.load(network, "imagenet")


@NETWORKS
def test_a_damaged_file_in_the_hub_folder_is_found_at_the_start(tmp_path, monkeypatch, network):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = (
        tmp_path
        / "hub"
        / "checkpoints"
        / {"vgg16": "vgg16-397923af.pth", "squeezenet": "squeezenet1_1-b8a52dc0.pth"}[network]
    )
    assert str(path) in pretrained.missing_download(network, "imagenet")
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=rf"{path.name}: .*; delete it to download it again"):
        pretrained.load(network, "imagenet")
    assert pretrained.missing_download(network, "imagenet") is None


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub folder, and a server whose file has the name and checksum that are expected."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with archives.server() as server:
        server.body = b"weights" * 1000
        url = f"{server.url}net-{hashlib.sha256(server.body).hexdigest()[:8]}.pth"
        monkeypatch.setattr(pretrained, "_url", lambda _network: url)
        yield server, pretrained.hub_path(url)


def test_a_download_reaches_the_hub_folder_whole_and_once(hub):
    server, path = hub
    assert pretrained.weights_file("squeezenet", "imagenet") == path
    assert path.read_bytes() == server.body and list(path.parent.iterdir()) == [path]
    server.body = b""
    assert pretrained.weights_file("squeezenet", "imagenet") == path


def test_a_wrong_download_is_refused_and_leaves_nothing(hub):
    server, path = hub
    server.body = b"wrong"
    with pytest.raises(ValueError, match="could not be downloaded"):
        pretrained.weights_file("squeezenet", "imagenet")
    assert not list(path.parent.iterdir())


def test_prepare_data_prints_the_source_once_the_weights_are_there(tmp_path, monkeypatch):
    """First through a proxy that refuses every connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    failed = run("prepare_data.py", "perceptual", status=2)
    assert "--perceptual-weights FILE" in failed.stderr and failed.stdout == ""
    path = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert run("prepare_data.py", "perceptual").stdout == "imagenet\n"
