import numpy as np
import pytest
import torch

from generator_loss_functions import GeneratorLoss, TVLoss, VGG16Features, adversarial_loss, discriminator_loss
from utils import files
from utils.compat import import_torchvision
from utils.pretrained import vgg16_layers, vgg16_state_dict

WEIGHTS = {"pixel_weight": 1, "adversarial_weight": 1e-3, "perceptual_weight": 6e-3, "tv_weight": 2e-8}  # the seed's


@pytest.fixture(scope="module")
def vgg() -> VGG16Features:
    return VGG16Features(vgg16_state_dict("random"))


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 32, 40, generator=generator), torch.rand(2, 3, 32, 40, generator=generator)


def test_tv_is_the_formula_of_the_design(pair):
    x = pair[0].double().numpy()
    n, c, h, w = x.shape
    down, across = np.diff(x, axis=2), np.diff(x, axis=3)
    expected = 2 / n * ((down**2).sum() / (c * (h - 1) * w) + (across**2).sum() / (c * h * (w - 1)))
    assert TVLoss()(pair[0]).item() == pytest.approx(expected, rel=1e-5)


def test_total_is_the_weighted_sum_of_independently_computed_terms(vgg, pair):
    sr, hr = pair
    logits = torch.tensor([0.3, -2.0])
    total, terms = GeneratorLoss(vgg=vgg, **WEIGHTS)(logits, sr, hr)
    reference = import_torchvision().models.vgg16(weights=None).features[:31].eval()
    reference.load_state_dict(vgg.features.state_dict())
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        difference = reference((sr - mean) / std) - reference((hr - mean) / std)
    expected = {
        "Loss_Pixel": ((sr - hr) ** 2).mean().item(),
        "Loss_Adversarial": -np.log(1 / (1 + np.exp(-np.array([0.3, -2.0])))).mean(),
        "Loss_Perceptual": (difference**2).mean().item(),
        "Loss_TV": TVLoss()(sr).item(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    weights = {"Loss_Pixel": 1, "Loss_Adversarial": 0.001, "Loss_Perceptual": 0.006, "Loss_TV": 2e-8}
    assert total.item() == pytest.approx(sum(weights[name] * value for name, value in expected.items()), rel=1e-5)


def test_perceptual_loss_has_gradient_for_sr_only(vgg, pair):
    sr, hr = (image.clone().requires_grad_() for image in pair)
    GeneratorLoss(vgg=vgg, **WEIGHTS).perceptual(sr, hr).backward()
    assert sr.grad.abs().sum() > 0
    assert hr.grad is None
    assert all(parameter.grad is None for parameter in vgg.parameters())


def test_features_stay_frozen_and_in_evaluation(vgg):
    assert not any(parameter.requires_grad for parameter in vgg.parameters())
    assert vgg(torch.rand(1, 3, 64, 96)).shape == (1, 512, 2, 3)
    assert len(vgg.features) == 31


def test_random_features_are_always_the_same_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = VGG16Features(vgg16_state_dict("random")).state_dict()
    torch.manual_seed(6)
    assert all(
        torch.equal(first[name], tensor) for name, tensor in VGG16Features(vgg16_state_dict("random")).state_dict().items()
    )
    torch.manual_seed(5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("prefix", ["features.", ""])
def test_weights_come_from_a_state_dict_file(tmp_path, vgg, prefix, pair):
    path = tmp_path / "vgg16.pth"
    files.save_tensors(path, {f"{prefix}{name}": tensor for name, tensor in vgg.features.state_dict().items()})
    vgg16_state_dict(str(path))
    assert torch.equal(VGG16Features(vgg16_state_dict(str(path)))(pair[0]), vgg(pair[0]))


def test_a_file_of_other_weights_is_refused(tmp_path):
    path = tmp_path / "other.pth"
    files.save_tensors(path, {"features.0.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"other\.pth: not a state dict of torchvision's VGG16"):
        vgg16_state_dict(str(path))


def test_without_network_the_error_names_two_alternatives(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match=r"no route to host.*--vgg-weights FILE.*--vgg-weights random"):
        vgg16_state_dict("imagenet")


def test_a_damaged_file_in_the_hub_folder_is_found_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth: .*; delete it to download it again"):
        vgg16_state_dict("imagenet")


def test_without_perceptual_weight_no_vgg_is_needed(pair):
    total, terms = GeneratorLoss(**WEIGHTS | {"perceptual_weight": 0})(torch.zeros(2), *pair)
    assert list(terms) == ["Loss_Pixel", "Loss_Adversarial", "Loss_TV"] and total > 0
    with pytest.raises(ValueError, match="needs VGG16"):
        GeneratorLoss(**WEIGHTS)


def test_the_pixel_loss_is_mse_or_l1(pair):
    difference = pair[0] - pair[1]
    for name, expected in {"mse": difference.square().mean(), "l1": difference.abs().mean()}.items():
        _, terms = GeneratorLoss(**WEIGHTS | {"perceptual_weight": 0}, pixel_loss=name)(torch.zeros(2), *pair)
        assert terms["Loss_Pixel"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_layers_are_those_of_torchvision():
    ours, theirs = vgg16_layers().state_dict(), import_torchvision().models.vgg16(weights=None).features.state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_a_loss_is_built_from_keywords_so_that_no_two_weights_can_be_swapped(vgg):
    with pytest.raises(TypeError, match="positional"):
        GeneratorLoss(vgg, 1, 1e-3, 6e-3, 2e-8)


def test_discriminator_and_adversarial_loss_are_those_of_probabilities():
    real, fake = torch.tensor([1.5, -0.2]), torch.tensor([[0.3], [-2.0]])
    d_real, d_fake = (1 / (1 + np.exp(-logits.numpy())) for logits in (real, fake))
    assert discriminator_loss(real, fake).item() == pytest.approx(-np.log(d_real).mean() - np.log(1 - d_fake).mean(), rel=1e-6)
    assert adversarial_loss(fake).item() == pytest.approx(-np.log(d_fake).mean(), rel=1e-6)
    assert discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * np.log(2))
