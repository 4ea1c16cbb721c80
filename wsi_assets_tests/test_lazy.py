"""Facts about packages whose names load on first use."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest

ROOMS = ("slides", "annotations", "index", "patches", "learning", "evaluation", "demo")


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_a_room_offers_is_there_and_can_be_listed(room):
    package = import_module(f"wsi_assets.{room}")
    assert package.__all__
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("room", ROOMS)
def test_no_name_of_a_room_is_also_that_of_a_module_in_it(room):
    package = import_module(f"wsi_assets.{room}")
    assert not {module.name for module in iter_modules(package.__path__)} & set(package.__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_no_other_names(room):
    package = import_module(f"wsi_assets.{room}")
    with pytest.raises(AttributeError, match=f"module 'wsi_assets.{room}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_importing_every_room_loads_no_library_of_its_own():
    code = "import sys\n" + "\n".join(f"import wsi_assets.{room}" for room in ROOMS)
    heavy = ("numpy", "cv2", "torch", "shapely", "openslide", "pydantic", "matplotlib")
    code += f"\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
