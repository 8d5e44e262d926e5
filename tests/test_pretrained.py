"""Where the perceptual networks' ImageNet weights come from."""

import hashlib

import archives
import pytest
import torch
from conftest import run

from generator_loss_functions import PERCEPTUAL_NETWORKS, SqueezeNetFeatures
from utils import files, pretrained
from utils.pretrained import import_torchvision

NETWORKS = pytest.mark.parametrize("network", PERCEPTUAL_NETWORKS)
HUB_FILES = {
    "vgg16": "vgg16-397923af.pth",
    "vgg19": "vgg19-dcbb9e9d.pth",
    "squeezenet": "squeezenet1_1-b8a52dc0.pth",
}


@pytest.mark.parametrize("network", ["vgg16", "squeezenet"])
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
    first = PERCEPTUAL_NETWORKS[network](pretrained.load(network, "random").state_dict).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    second = PERCEPTUAL_NETWORKS[network](
        pretrained.load(network, "random").state_dict
    ).state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


@pytest.mark.parametrize("network", ["vgg16", "squeezenet"])
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
    vgg = pretrained.load("vgg16", "random").state_dict
    squeezenet = pretrained.load("squeezenet", "random").state_dict
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


# --- VGG19, whole or its first layers, in the three ways that files name them ---------------------


def vgg19_file(tmp_path, names: list[str], widths: list[int]) -> tuple[str, dict]:
    """Write untrained convolutions under these names; the first is 1x1 if it has three channels."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    channels = 3
    for name, width in zip(names, widths, strict=True):
        side = 1 if width == 3 else 3
        shape = (width, channels, side, side)
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / 10
        state[f"{name}.bias"] = torch.randn(width, generator=generator) / 10
        channels = width
    path = tmp_path / "vgg19.pth"
    files.save_tensors(path, state)
    return str(path), state


def test_torchvisions_vgg19_is_read_by_name(tmp_path):
    theirs = import_torchvision().models.vgg19(weights=None)
    files.save_tensors(tmp_path / "whole.pth", theirs.state_dict())
    found = pretrained.load("vgg19", str(tmp_path / "whole.pth")).state_dict
    convolutions = [layer for layer in theirs.features if isinstance(layer, torch.nn.Conv2d)]
    names = [name for block in pretrained.VGG19_BLOCKS for name in block]
    assert names[0] == "conv1_1" and names[-1] == "conv5_4" and len(names) == 16
    assert list(found) == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    for name, layer in zip(names, convolutions, strict=True):
        assert torch.equal(found[f"{name}.weight"], layer.weight)
        assert torch.equal(found[f"{name}.bias"], layer.bias)
    untrained = pretrained.load("vgg19", "random").state_dict
    assert {name: tensor.shape for name, tensor in untrained.items()} == {
        name: tensor.shape for name, tensor in found.items()
    }


@pytest.mark.parametrize(
    ("names", "widths"),
    [
        (["0", "2", "5", "9", "12", "16"], [3, 64, 64, 128, 128, 256]),
        (["conv0", "conv11", "conv12", "conv21", "conv22", "conv31"], [3, 16, 16, 32, 32, 64]),
        (["0", "2", "5", "7", "10"], [64, 64, 128, 128, 256]),
    ],
)
def test_the_first_layers_of_vgg19_are_read_under_any_of_their_names(tmp_path, names, widths):
    path, state = vgg19_file(tmp_path, names, widths)
    found = pretrained.load("vgg19", path).state_dict
    wanted = ["conv0", "conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"][-len(names) :]
    assert list(found) == [f"{name}.{kind}" for name in wanted for kind in ("weight", "bias")]
    for tensor, expected in zip(found.values(), state.values(), strict=True):
        assert torch.equal(tensor, expected)


def test_files_that_are_not_vgg19_are_refused(tmp_path):
    vgg16 = pretrained.load("vgg16", "random").state_dict
    squeezenet = pretrained.load("squeezenet", "random").state_dict
    names = ["0", "2", "5", "9", "12", "16"]
    widths = [3, 8, 8, 8, 8, 8]
    _, state = vgg19_file(tmp_path, names, widths)
    short = {name: tensor for name, tensor in state.items() if not name.startswith("16")}
    gap = {name: tensor for name, tensor in state.items() if not name.startswith("9")}
    no_bias = {name: tensor for name, tensor in state.items() if name != "9.bias"}
    narrow = state | {"9.weight": torch.zeros(8, 4, 3, 3)}
    cases = [
        (vgg16, r"16\.weight of shape \(N, 256, 3, 3\)"),
        (squeezenet, r"0\.weight of shape|2\.weight of shape|ends after"),
        (short, r"up to conv3_1 at least \(it ends after conv2_2\)"),
        (gap, r"9\.weight of shape \(N, 8, 3, 3\) and its bias are missing"),
        (no_bias, r"9\.weight of shape"),
        (narrow, r"9\.weight of shape"),
        ({"text": "text"}, "before the first"),
        ([torch.zeros(3)], "before the first"),
    ]
    path = tmp_path / "other.pth"
    for content, reason in cases:
        files.save_tensors(path, content)
        with pytest.raises(ValueError, match=rf"other\.pth: not a state dict of VGG19.*{reason}"):
            pretrained.load("vgg19", str(path))


def test_a_file_of_vgg19_that_is_cut_short_is_refused(tmp_path):
    path, _state = vgg19_file(tmp_path, ["0", "2", "5", "9", "12", "16"], [3, 8, 8, 8, 8, 8])
    whole = (tmp_path / "vgg19.pth").read_bytes()
    (tmp_path / "vgg19.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"vgg19\.pth: "):
        pretrained.load("vgg19", path)


def test_the_network_of_a_file_that_measures_is_recognised(tmp_path):
    path, _state = vgg19_file(tmp_path, ["0", "2", "5", "9", "12", "16"], [3, 8, 8, 8, 8, 8])
    found = pretrained.load_to_measure(path)
    same = pretrained.load("vgg19", path)
    assert found.network == "vgg19" and found.fingerprint == same.fingerprint
    assert list(found.state_dict) == list(same.state_dict)
    squeezenet = pretrained.load("squeezenet", "random").state_dict
    files.save_tensors(tmp_path / "squeezenet.pth", squeezenet)
    assert pretrained.load_to_measure(str(tmp_path / "squeezenet.pth")).network == "squeezenet"


# --- downloads ----------------------------------------------------------------------------------


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
    path = tmp_path / "hub" / "checkpoints" / HUB_FILES[network]
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
