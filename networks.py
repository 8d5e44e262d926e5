"""Every generator and discriminator by name."""

from esrgan import RRDBGenerator, UNetDiscriminator
from model import Discriminator, Generator, MultiScaleDiscriminator

GENERATORS = {"srresnet": Generator, "rrdb": RRDBGenerator}  # by their names in generator files
DISCRIMINATORS = {
    "vgg": Discriminator,
    "multiscale": MultiScaleDiscriminator,
    "unet": UNetDiscriminator,
}
