"""Registration and descriptions of modules that a `config.json` names."""

import re

import pytest

from perceivers._registry import Configurable, describe
from perceivers.inputs import InputModule, Pixels


class Family(Configurable, argument="parts"):
    """A family of its own, so that the library's are left alone."""


SOURCE = """
class Mine(Family):
    def __init__(self, *, size: int, num_bands: int = 4) -> None:
        super().__init__()
        self.config = {"size": size, "num_bands": num_bands}
"""


@pytest.fixture
def mine():
    """A class that is registered, under the name of this module."""
    Family.kinds.clear()
    names = {"Family": Family, "__name__": __name__}
    exec(SOURCE, names)
    return names["Mine"]


def test_a_subclass_is_registered(mine):
    part = Family.create({"kind": "Mine", "size": 3})
    assert type(part) is mine
    assert describe(part) == {"kind": "Mine", "size": 3, "num_bands": 4}
    assert Family.create(part) is part
    assert "Mine" not in InputModule.kinds


def test_the_same_definition_may_be_executed_again(mine):
    """As a notebook does; modules made before are still described."""
    before = mine(size=3)
    names = {"Family": Family, "__name__": __name__}
    exec(SOURCE, names)
    assert type(Family.create({"kind": "Mine", "size": 3})) is names["Mine"] is not mine
    assert describe(before) == {"kind": "Mine", "size": 3, "num_bands": 4}


def test_a_name_is_taken_once(mine):
    message = f"the name 'Mine' of elsewhere.Mine is taken by {__name__}.Mine: rename the class"
    with pytest.raises(ValueError, match=re.escape(message)):
        exec(SOURCE, {"Family": Family, "__name__": "elsewhere"})
    assert Family.kinds == {"Mine": mine}
    with pytest.raises(ValueError, match=r"the name 'Pixels' of .* is taken by perceivers\.inputs\.pixels\.Pixels"):
        type("Pixels", (InputModule,), {})
    assert InputModule.kinds["Pixels"] is Pixels


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"kind": "Mine", "size": 3, "num_band": 2}, "unexpected keys ['num_band'] for Mine; did you mean 'num_bands'?"),
        ({"kind": "Mine", "size": 3, "xyz": 2}, "unexpected keys ['xyz'] for Mine; remove them, or update perceivers"),
        ({"kind": "Mine"}, "parts: size of Mine is missing"),
        ({"kind": "Yours"}, "parts: kind='Yours' is not one of ['Mine']: import the module that defines the class, or pass"),
        ({"size": 3}, "parts={'size': 3} must be a module, or a description: a dict with 'kind' and its arguments"),
    ],
    ids=str,
)
def test_wrong_descriptions(mine, part, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Family.create(part)
