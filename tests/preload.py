"""What the server of `conftest.run` imports before it forks."""

import matplotlib  # noqa: F401

import train  # noqa: F401
from utils import pretrained

pretrained.import_torchvision()
