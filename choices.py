"""The names that command lines offer, read without the code behind them.

That code imports PyTorch and other large packages, which takes a second or more, while `--help` and
the message about a mistyped option should appear at once. Every name is therefore entered twice:
here, and in the table that holds its code, which a comment names. tests/test_choices.py compares
the two.
"""

UPSCALES = (1, 2, 3, 4, 8)

# networks.GENERATORS, each with the integer arguments of its constructor and their defaults
GENERATORS = {
    "srresnet": {"blocks": 8},
    "rrdb": {"blocks": 23, "features": 64, "growth": 32},
}
# networks.DISCRIMINATORS
DISCRIMINATORS = ("vgg", "multiscale", "unet", "unet-small")
# degradations.DEGRADATIONS
DEGRADATIONS = ("bicubic", "photo", "photo-2")
# Tables of the same names in generator_loss_functions
PIXEL_LOSSES = ("mse", "l1")
ADVERSARIAL_LOSSES = ("standard", "relativistic")
PERCEPTUAL_NETWORKS = ("vgg16", "vgg19", "squeezenet")
