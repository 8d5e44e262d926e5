"""The names in choices.py are those of the tables that hold the code."""

import inspect

import pytest

import choices
import degradations
import generator_loss_functions
import networks
import options
from utils import pretrained


def test_generators_have_the_arguments_of_their_constructors():
    for name, constructor in networks.GENERATORS.items():
        parameters = inspect.signature(constructor).parameters.values()
        defaults = {
            parameter.name: parameter.default
            for parameter in parameters
            if type(parameter.default) is int and parameter.name != "upscale"
        }
        assert choices.GENERATORS[name] == defaults
    assert choices.GENERATORS.keys() == networks.GENERATORS.keys()


@pytest.mark.parametrize(
    ("module", "table"),
    [
        (networks, "DISCRIMINATORS"),
        (degradations, "DEGRADATIONS"),
        (generator_loss_functions, "PIXEL_LOSSES"),
        (generator_loss_functions, "ADVERSARIAL_LOSSES"),
        (generator_loss_functions, "PERCEPTUAL_NETWORKS"),
    ],
)
def test_names_are_those_of_the_code(module, table):
    assert getattr(choices, table) == tuple(getattr(module, table))


def test_every_perceptual_network_has_its_defaults_and_its_least_side():
    names = set(choices.PERCEPTUAL_NETWORKS)
    assert names == options.DEFAULT_PERCEPTUAL.keys() == pretrained.LEAST_SIDES.keys()
