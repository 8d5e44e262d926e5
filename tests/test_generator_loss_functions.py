import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter

from dataloader import TestDatasetFromFolder
from generator_loss_functions import (
    ADVERSARIAL_LOSSES,
    GeneratorLoss,
    SqueezeNetFeatures,
    TVLoss,
    VGG16Features,
    VGG19Features,
    consistency_loss,
    grid_loss,
    reduce_bicubic,
    sharpened,
)
from utils import images, pretrained
from utils.pretrained import import_torchvision

KNOWN_DISTANCES = [
    2.02106,
    1.68673,
    2.95276,
    3.28091,
    2.43459,
]  # of bicubic on Set5 at x4, SqueezeNet 1.0
WEIGHTS = {
    "pixel_weight": 1,
    "adversarial_weight": 1e-3,
    "perceptual_weight": 6e-3,
    "tv_weight": 2e-8,
}  # the seed's


@pytest.fixture(scope="module")
def vgg() -> VGG16Features:
    return VGG16Features(pretrained.load("vgg16", "random").state_dict)


@pytest.fixture(scope="module")
def squeezenet() -> SqueezeNetFeatures:
    return SqueezeNetFeatures(pretrained.load("squeezenet", "random").state_dict)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 32, 40, generator=generator), torch.rand(
        2, 3, 32, 40, generator=generator
    )


def test_tv_is_the_formula_of_the_design(pair):
    x = pair[0].double().numpy()
    n, c, h, w = x.shape
    down, across = np.diff(x, axis=2), np.diff(x, axis=3)
    expected = 2 / n * ((down**2).sum() / (c * (h - 1) * w) + (across**2).sum() / (c * h * (w - 1)))
    assert TVLoss()(pair[0]).item() == pytest.approx(expected, rel=1e-5)


def test_total_is_the_weighted_sum_of_independently_computed_terms(vgg, pair):
    sr, hr = pair
    logits = torch.tensor([0.3, -2.0])
    total, terms = GeneratorLoss(network=vgg, **WEIGHTS)(sr, hr, logits)
    reference = import_torchvision().models.vgg16(weights=None).features[:31].eval()
    reference.load_state_dict(vgg.features.state_dict())
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    )
    with torch.no_grad():
        difference = reference((sr - mean) / std) - reference((hr - mean) / std)
    expected = {
        "Loss_Pixel": ((sr - hr) ** 2).mean().item(),
        "Loss_Adversarial": -np.log(1 / (1 + np.exp(-np.array([0.3, -2.0])))).mean(),
        "Loss_Perceptual": (difference**2).mean().item(),
        "Loss_TV": TVLoss()(sr).item(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    weights = {
        "Loss_Pixel": 1,
        "Loss_Adversarial": 0.001,
        "Loss_Perceptual": 0.006,
        "Loss_TV": 2e-8,
    }
    assert total.item() == pytest.approx(
        sum(weights[name] * value for name, value in expected.items()), rel=1e-5
    )


def test_the_perceptual_distances_have_gradients_for_sr_only(vgg, squeezenet, pair):
    for network in (vgg, squeezenet):
        sr, hr = (image.clone().requires_grad_() for image in pair)
        distances = network.distance(sr, hr)
        assert distances.shape == (2,)
        distances.sum().backward()
        assert sr.grad.abs().sum() > 0
        assert hr.grad is None
        assert all(parameter.grad is None for parameter in network.parameters())


def test_features_stay_frozen_and_in_evaluation(vgg):
    assert not any(parameter.requires_grad for parameter in vgg.parameters())
    assert vgg(torch.rand(1, 3, 64, 96)).shape == (1, 512, 2, 3)
    assert len(vgg.features) == 31


def test_without_perceptual_weight_no_network_is_needed(pair):
    total, terms = GeneratorLoss(**WEIGHTS | {"perceptual_weight": 0})(*pair, torch.zeros(2))
    assert "Loss_Perceptual" not in terms and total > 0
    with pytest.raises(ValueError, match="needs a perceptual network"):
        GeneratorLoss(**WEIGHTS)


@pytest.mark.parametrize("name", ["pixel", "adversarial", "perceptual", "tv"])
def test_a_term_without_weight_is_not_computed(vgg, pair, name, monkeypatch):
    loss = GeneratorLoss(network=vgg, **WEIGHTS | {f"{name}_weight": 0})
    owner, method = {
        "pixel": (loss, "pixel_loss"),
        "adversarial": (loss.adversarial, "generator_loss"),
        "perceptual": (vgg, "distance"),
        "tv": (loss.tv_loss, "forward"),
    }[name]
    monkeypatch.setattr(owner, method, None)  # calling it would raise an error
    total, terms = loss(*pair, None if name == "adversarial" else torch.zeros(2))
    assert terms.keys() == {column for column, weight in loss.weights.items() if weight}
    assert total > 0


def test_grid_and_consistency_are_computed_only_with_a_weight(pair):
    weights = WEIGHTS | {"perceptual_weight": 0}
    _, without = GeneratorLoss(**weights)(*pair, torch.zeros(2))
    loss = GeneratorLoss(grid_weight=1, consistency_weight=1, **weights)
    _, terms = loss(*pair, torch.zeros(2))
    assert terms.keys() - without.keys() == {"Loss_Grid", "Loss_Consistency"}


def test_sharpening_is_scipys_unsharp_masking(astronaut):
    hr = astronaut[:40, :50] / 255
    detail = hr - gaussian_filter(hr, (1.5, 1.5, 0), mode="reflect")
    expected = (hr + 0.6 * np.minimum(np.abs(detail) * 25.5, 1) * detail).clip(0, 1)
    found = sharpened(torch.from_numpy(hr).permute(2, 0, 1)[None].float(), 0.6)
    assert np.abs(found[0].permute(1, 2, 0).numpy() - expected).max() < 1e-6
    assert np.abs(expected - hr).max() > 0.1
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert torch.allclose(sharpened(flat, 0.6), flat)


def test_only_the_pixel_and_perceptual_losses_see_sharpened_hr(vgg, pair):
    sr, hr = pair
    weights = WEIGHTS | {"grid_weight": 1, "consistency_weight": 1, "network": vgg}
    plain, sharp = (
        GeneratorLoss(sharpen=amount, **weights)(sr, hr, torch.zeros(2))[1] for amount in (0, 0.6)
    )
    differ = {name for name in plain if plain[name] != sharp[name]}
    assert differ == {"Loss_Pixel", "Loss_Perceptual"}
    assert sharp["Loss_Pixel"].item() == pytest.approx(F.mse_loss(sr, sharpened(hr, 0.6)).item())


def test_the_pixel_loss_is_mse_or_l1(pair):
    difference = pair[0] - pair[1]
    for name, expected in {
        "mse": difference.square().mean(),
        "l1": difference.abs().mean(),
    }.items():
        _, terms = GeneratorLoss(**WEIGHTS | {"perceptual_weight": 0}, pixel_loss=name)(
            *pair, torch.zeros(2)
        )
        assert terms["Loss_Pixel"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_is_built_from_keywords_so_that_no_two_weights_can_be_swapped(vgg):
    with pytest.raises(TypeError, match="positional"):
        GeneratorLoss(vgg, 1, 1e-3, 6e-3, 2e-8)


def sigmoid(logits: torch.Tensor) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.double().numpy()))


def test_the_standard_losses_are_those_of_probabilities():
    real, fake, loss = (
        torch.tensor([1.5, -0.2]),
        torch.tensor([[0.3], [-2.0]]),
        ADVERSARIAL_LOSSES["standard"](),
    )
    loss_d, scores = loss.discriminator_loss(real, fake)
    assert loss_d.item() == pytest.approx(
        -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean(), rel=1e-6
    )
    assert [score.item() for score in scores.values()] == pytest.approx(
        [sigmoid(real).mean(), sigmoid(fake).mean()]
    )
    assert loss.generator_loss(None, fake).item() == pytest.approx(
        -np.log(sigmoid(fake)).mean(), rel=1e-6
    )
    assert loss.discriminator_loss(torch.zeros(3), torch.zeros(3))[0].item() == pytest.approx(
        2 * np.log(2)
    )


def test_the_relativistic_losses_compare_with_the_mean_of_the_other_side():
    """RaSGAN (Jolicoeur-Martineau, 2018): D(x, y) = sigmoid(C(x) - mean C(y)); G swaps labels."""
    real, fake = torch.tensor([[1.5, -0.2], [0.4, 3.0]]), torch.tensor([[0.3, 0.0], [-2.0, 1.0]])
    loss = ADVERSARIAL_LOSSES["relativistic"]()
    more_real, more_fake = sigmoid(real - fake.mean()), sigmoid(fake - real.mean())
    loss_d, scores = loss.discriminator_loss(real, fake)
    assert loss_d.item() == pytest.approx(
        -np.log(more_real).mean() - np.log(1 - more_fake).mean(), rel=1e-6
    )
    assert [score.item() for score in scores.values()] == pytest.approx(
        [more_real.mean(), more_fake.mean()]
    )
    expected = -np.log(1 - more_real).mean() - np.log(more_fake).mean()
    assert loss.generator_loss(real, fake).item() == pytest.approx(expected, rel=1e-6)
    shifted_d, _ = loss.discriminator_loss(real + 5, fake + 5)  # only differences count
    assert shifted_d.item() == pytest.approx(loss_d.item(), rel=1e-5)


# --- SqueezeNet ---------------------------------------------------------------------------------


def test_squeezenets_distance_is_lpips_without_calibration(squeezenet, pair):
    """A second opinion: the package lpips; without `lpips=True` it averages over channels."""
    import_torchvision()
    import lpips

    reference = lpips.LPIPS(net="squeeze", lpips=False, pnet_rand=True, verbose=False)
    slices = [getattr(reference.net, f"slice{number}") for number in range(1, 8)]
    state = {
        f"{index}.{n}": t
        for part in slices
        for index, layer in part.named_children()
        for n, t in layer.state_dict().items()
    }
    network = SqueezeNetFeatures(state)
    sr, hr = (F.interpolate(image, (48, 56), mode="bilinear") for image in pair)
    with torch.no_grad():
        expected = reference(sr * 2 - 1, hr * 2 - 1).flatten()
    assert torch.allclose(network.distance(sr, hr), expected, rtol=1e-4)
    assert torch.equal(squeezenet.distance(hr, hr), torch.zeros(2))


def test_squeezenet_1_0_gives_the_known_distances(squeezenet_file, set5):
    """Of bicubic on Set5 at x4, computed with torchvision's network in another program."""
    network = SqueezeNetFeatures(pretrained.load("squeezenet", str(squeezenet_file)).state_dict)
    distances = []
    with torch.no_grad():
        for _name, lr, hr in TestDatasetFromFolder(set5 / "x4" / "LR", set5 / "x4" / "HR", 4):
            bicubic = images.to_tensor(images.upscale_bicubic(images.to_array(lr), 4))
            distances.append(
                network.distance(*(images.uint8_to_unit(image) for image in (bicubic, hr))).item()
            )
    assert distances == pytest.approx(KNOWN_DISTANCES, abs=1e-4)


def test_squeezenet_1_0_compares_seven_stages_of_torchvisions_network(pair):
    state = {f"features.{name}": tensor for name, tensor in old_squeezenet_state().items()}
    network = import_torchvision().models.squeezenet1_0(weights=None).eval()
    network.load_state_dict(state, strict=False)
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    )
    total = 0.0
    for count in (2, 5, 8, 9, 10, 11, 13):  # the first ReLU, then after fires
        with torch.no_grad():
            a, b = (
                network.features[:count]((image - mean) / std).double().numpy() for image in pair
            )
        a, b = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (a, b))
        total = total + ((a - b) ** 2).sum(1).mean((1, 2))
    ours = SqueezeNetFeatures(old_squeezenet_state()).distance(*pair)
    assert ours.tolist() == pytest.approx(total.tolist(), rel=1e-4)


def old_squeezenet_state() -> dict[str, torch.Tensor]:
    """Untrained weights for version 1.0; `random` draws those of 1.1."""
    layers = pretrained.squeezenet_layers(torch.empty(96, 3, 7, 7))
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(tensor.shape, generator=generator) / 10
        for name, tensor in layers.state_dict().items()
    }


def test_a_black_image_gives_finite_gradients(squeezenet):
    """All features of a stage may be zero, where a plain square root has no derivative."""
    state = {
        name: -tensor.abs() for name, tensor in old_squeezenet_state().items()
    }  # every ReLU gives zero
    sr = torch.rand(1, 3, 32, 32, requires_grad=True)
    SqueezeNetFeatures(state).distance(sr, torch.rand(1, 3, 32, 32)).sum().backward()
    assert sr.grad.isfinite().all()


def test_vgg19_compares_torchvisions_five_stages_before_activation(pair):
    """Against torchvision's layers, and the last convolutions of the blocks by their index."""
    reference = import_torchvision().models.vgg19(weights=None).eval()
    names = [name for block in pretrained.VGG19_BLOCKS for name in block]
    layers = [layer for layer in reference.features if isinstance(layer, torch.nn.Conv2d)]
    state = {}
    for name, layer in zip(names, layers, strict=True):
        state |= {f"{name}.weight": layer.weight.detach(), f"{name}.bias": layer.bias.detach()}
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for layer in reference.features:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False
    loss, measured = np.zeros(2), np.zeros(2)
    for index, weight in ((2, 0.1), (7, 0.1), (16, 1), (25, 1), (34, 1)):
        with torch.no_grad():
            a, b = (
                reference.features[: index + 1]((image - mean) / std).double().numpy()
                for image in pair
            )
        loss = loss + weight * np.abs(a - b).mean((1, 2, 3))
        a, b = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (a, b))
        measured = measured + weight * ((a - b) ** 2).sum(1).mean((1, 2))
    network = VGG19Features(state)
    assert network.distance(*pair).tolist() == pytest.approx(loss.tolist(), rel=1e-4)
    assert network.measure(*pair).tolist() == pytest.approx(measured.tolist(), rel=1e-4)
    assert network.distance(pair[1], pair[1]).tolist() == [0, 0]


def test_a_slice_of_vgg19_pads_by_reflection_and_has_a_stage_per_block(pair):
    """Against layers put together as the networks for style transfer are."""
    torch.manual_seed(4)
    chain = torch.nn.Sequential()
    state = {"conv0.weight": torch.randn(3, 3, 1, 1), "conv0.bias": torch.randn(3)}
    first = torch.nn.Conv2d(3, 3, 1)
    first.load_state_dict({"weight": state["conv0.weight"], "bias": state["conv0.bias"]})
    chain.append(first)
    channels = 3
    ends = {}
    for name, width in (
        ("1_1", 64),
        ("1_2", 8),
        ("2_1", 16),
        ("2_2", 16),
        ("3_1", 24),
        ("3_2", 24),
    ):
        if name in ("2_1", "3_1"):
            chain.append(torch.nn.MaxPool2d(2, 2, ceil_mode=True))
        chain.append(torch.nn.ReflectionPad2d(1))
        convolution = torch.nn.Conv2d(channels, width, 3)
        state[f"conv{name}.weight"] = convolution.weight.detach()
        state[f"conv{name}.bias"] = convolution.bias.detach()
        chain.append(convolution)
        ends[name] = len(chain)
        chain.append(torch.nn.ReLU())
        channels = width
    loss, measured = torch.zeros(2), torch.zeros(2)
    sr, hr = (image[..., :31, :37] for image in pair)  # odd sides: poolings keep the last row
    for name, weight in (("1_2", 0.1), ("2_2", 0.1), ("3_2", 1)):
        with torch.no_grad():
            a, b = (chain[: ends[name]](image) for image in (sr, hr))
        loss += weight * (a - b).abs().mean((1, 2, 3))
        a = a / a.square().sum(1, keepdim=True).sqrt()
        b = b / b.square().sum(1, keepdim=True).sqrt()
        measured += weight * (a - b).square().sum(1).mean((1, 2))
    network = VGG19Features(state)
    assert network.distance(sr, hr).tolist() == pytest.approx(loss.tolist(), rel=1e-4)
    assert network.measure(sr, hr).tolist() == pytest.approx(measured.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "stages", "known"),
    [
        ("slice", ["conv1_2", "conv2_2", "conv3_1"], [0.95741, 0.51469, 1.21918, 1.59653, 0.78974]),
        (
            "distilled",
            ["conv1_2", "conv2_2", "conv3_4", "conv4_4", "conv5_1"],
            [0.32835, 0.36208, 0.60323, 0.538, 0.32417],
        ),
    ],
)
def test_vgg19s_first_layers_give_the_known_distances(vgg19_files, set5, name, stages, known):
    """Of bicubic on Set5 at x4, computed layer by layer in another program."""
    network = VGG19Features(pretrained.load("vgg19", str(vgg19_files[name])).state_dict)
    assert list(network.stages) == stages
    distances = []
    with torch.no_grad():
        for _name, lr, hr in TestDatasetFromFolder(set5 / "x4" / "LR", set5 / "x4" / "HR", 4):
            bicubic = images.to_tensor(images.upscale_bicubic(images.to_array(lr), 4))
            pair = (images.uint8_to_unit(image) for image in (bicubic, hr))
            distances.append(network.measure(*pair).item())
    assert distances == pytest.approx(known, abs=1e-4)


def distilled_state(factor: float) -> dict[str, torch.Tensor]:
    """A quarter of VGG19's channels up to conv3_1, whose values are multiplied by a factor."""
    generator = torch.Generator().manual_seed(4)
    names = [name for block in pretrained.VGG19_BLOCKS for name in block][:5]
    state = {}
    channels = 3
    for name, width in zip(names, (16, 16, 32, 32, 64), strict=True):
        state[f"{name}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) / 5
        state[f"{name}.bias"] = torch.randn(width, generator=generator) / 5
        channels = width
    for kind in ("weight", "bias"):
        state[f"{names[-1]}.{kind}"] *= factor
    return state


def test_a_distilled_networks_features_are_compared_relative_to_those_of_hr(pair):
    sr, hr = pair
    network = VGG19Features(distilled_state(1))
    expected = torch.zeros(len(sr))
    for (weight, ours), (_, target) in zip(network(sr), network(hr), strict=True):
        expected += weight * (ours - target).abs().mean((1, 2, 3)) / target.abs().mean()
    assert network.distance(sr, hr).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    smaller = VGG19Features(distilled_state(1e-3))
    assert smaller.distance(sr, hr).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_only_sr_gets_a_gradient_of_vgg19(pair):
    network = VGG19Features(pretrained.load("vgg19", "random").state_dict)
    sr, hr = (image.clone().requires_grad_() for image in pair)
    network.distance(sr, hr).sum().backward()
    assert sr.grad.abs().sum() > 0 and hr.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "squeezenet"])
def test_the_networks_take_images_of_their_least_side_and_no_smaller_ones(name, vgg):
    least = pretrained.LEAST_SIDES[name]
    if name == "vgg16":
        network = vgg
    elif name == "squeezenet":
        network = SqueezeNetFeatures(old_squeezenet_state())
    else:  # with conv0, and so with reflection, which needs one pixel more
        state = pretrained.load("vgg19", "random").state_dict
        network = VGG19Features(
            {"conv0.weight": torch.ones(3, 3, 1, 1), "conv0.bias": torch.zeros(3), **state}
        )
    assert network.distance(*torch.rand(2, 1, 3, least, least)).isfinite()
    with pytest.raises(RuntimeError):
        network.distance(*torch.rand(2, 1, 3, least - 1, least - 1))


# --- shift, zoom, grid and consistency ----------------------------------------------------------


def test_sr_and_hr_are_shifted_together_and_every_offset_is_drawn(squeezenet, pair):
    loss = GeneratorLoss(network=squeezenet, perceptual_shift=7, **WEIGHTS)
    sr, hr = pair
    drawn = set()
    for step in range(600):
        loss.draw_view(np.random.default_rng([0, 1, step]))
        drawn.add(loss.offset)
    assert drawn == {(top, left) for top in range(8) for left in range(8)}
    top, left = loss.offset
    _, terms = loss(sr, hr, torch.zeros(2))
    parts = (image[..., top : top + 25, left : left + 33] for image in pair)
    assert terms["Loss_Perceptual"].item() == pytest.approx(
        squeezenet.distance(*parts).mean().item()
    )
    assert terms["Loss_Pixel"].item() == pytest.approx(
        (sr - hr).square().mean().item()
    )  # of the whole crop


def test_sr_and_hr_are_enlarged_together_and_every_zoom_is_drawn(squeezenet, pair):
    loss = GeneratorLoss(network=squeezenet, perceptual_zoom=2, **WEIGHTS)
    drawn = {}
    for step in range(60):
        loss.draw_view(np.random.default_rng([0, 1, step]))
        drawn[loss.zoom] = loss(*pair, torch.zeros(2))[1]["Loss_Perceptual"].item()
    assert sorted(drawn) == [1, 1.25, 1.5, 1.75, 2] and len(set(drawn.values())) == 5
    height, width = pair[0].shape[-2:]
    enlarged = (F.interpolate(image, (2 * height, 2 * width), mode="bicubic") for image in pair)
    assert drawn[2] == pytest.approx(squeezenet.distance(*enlarged).mean().item())


def test_without_zoom_the_shifts_are_those_of_runs_before_there_was_one(squeezenet):
    loss = GeneratorLoss(network=squeezenet, perceptual_shift=7, **WEIGHTS)
    for step in range(5):
        loss.draw_view(np.random.default_rng([0, 1, step]))
        assert (
            loss.offset == tuple(np.random.default_rng([0, 1, step]).integers(0, 8, 2).tolist())
            and loss.zoom == 1
        )


@pytest.mark.parametrize("upscale", [2, 3, 4, 8])
def test_the_grid_loss_is_the_definition(upscale):
    sr, hr = np.random.default_rng(1).random((2, 2, 3, 24, 48))
    difference = sr - hr
    fine = difference - uniform_filter(difference, (0, 0, 5, 5), mode="mirror")
    rows, columns = np.indices((24, 48)) % upscale
    squares = [
        fine[image, channel][(rows == row) & (columns == column)].mean() ** 2
        for image in range(2)
        for channel in range(3)
        for row in range(upscale)
        for column in range(upscale)
    ]
    assert grid_loss(*map(torch.from_numpy, (sr, hr)), upscale).item() == pytest.approx(
        np.mean(squares), rel=1e-9
    )


def test_the_grid_loss_sees_what_repeats_with_the_scale_and_nothing_else():
    hr = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    rows, columns = torch.arange(64)[:, None] % 4, torch.arange(64) % 4
    weave = 0.02 * ((rows + columns) % 2 - 0.5)
    noise = 0.02 * (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) - 0.5)
    assert grid_loss(hr + weave, hr, 4) > 50 * grid_loss(hr + noise, hr, 4)
    assert grid_loss(hr + 0.1, hr, 4) < 1e-12  # a colour cast is no grid
    total, terms = GeneratorLoss(grid_weight=1000, **WEIGHTS | {"perceptual_weight": 0})(
        hr + weave, hr, torch.zeros(2)
    )
    rest, _ = GeneratorLoss(**WEIGHTS | {"perceptual_weight": 0})(hr + weave, hr, torch.zeros(2))
    assert (total - rest).item() == pytest.approx(1000 * terms["Loss_Grid"].item(), rel=1e-4)


@pytest.mark.parametrize("upscale", [2, 3, 4, 8])
def test_the_consistency_loss_compares_what_pillow_makes_smaller(upscale):
    sr, hr = np.random.default_rng(1).random((2, 2, 3, 24, 48)).astype(np.float32)
    smaller = [
        np.asarray(
            Image.fromarray(plane).resize((48 // upscale, 24 // upscale), Image.Resampling.BICUBIC)
        )
        for plane in (sr - hr).reshape(-1, 24, 48)
    ]
    expected = np.square(smaller).mean()
    assert consistency_loss(*map(torch.from_numpy, (sr, hr)), upscale).item() == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("upscale", [2, 3, 4, 8])
@pytest.mark.parametrize("cells", [(1, 1), (2, 5), (6, 7)])  # most of them are border
def test_the_reduction_and_its_gradient_are_pytorchs(upscale, cells):
    generator = torch.Generator().manual_seed(1)
    sides = [side * upscale for side in cells]
    image = torch.rand(2, 3, *sides, generator=generator).requires_grad_()
    wanted = torch.rand(2, 3, *cells, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):  # which must not round it
        ours = reduce_bicubic(image, upscale)
    theirs = F.interpolate(image, cells, mode="bicubic", antialias=True)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad((x * wanted).sum(), image)[0] for x in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=0, atol=1e-5)


def test_the_consistency_loss_sees_what_lr_fixes_and_leaves_the_rest_free():
    hr = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    rows, columns = torch.arange(64)[:, None], torch.arange(64)
    fine, coarse = (0.1 * ((-1.0) ** ((rows // size) + (columns // size))) for size in (1, 8))
    assert consistency_loss(hr + coarse, hr, 4) > 1000 * consistency_loss(hr + fine, hr, 4)
    assert consistency_loss(0.9 * hr, hr, 4) > 1e-3  # lost contrast
    total, terms = GeneratorLoss(consistency_weight=300, **WEIGHTS | {"perceptual_weight": 0})(
        0.9 * hr, hr, torch.zeros(2)
    )
    rest, _ = GeneratorLoss(**WEIGHTS | {"perceptual_weight": 0})(0.9 * hr, hr, torch.zeros(2))
    assert (total - rest).item() == pytest.approx(300 * terms["Loss_Consistency"].item(), rel=1e-4)
