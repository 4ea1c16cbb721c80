"""Packages whose names load on first use offer all of their names, and importing them loads no library."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest

PACKAGES = ("slides", "annotations", "index", "patches", "learning", "evaluation", "demo")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_a_package_offers_is_there_and_can_be_listed(name):
    package = import_module(f"wsi_assets.{name}")
    assert package.__all__
    assert set(package.__all__) <= set(dir(package))
    for offered in package.__all__:
        assert getattr(package, offered) is not None


@pytest.mark.parametrize("name", PACKAGES)
def test_no_name_of_a_package_is_also_that_of_a_module_in_it(name):
    package = import_module(f"wsi_assets.{name}")
    assert not {module.name for module in iter_modules(package.__path__)} & set(package.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_no_other_names(name):
    package = import_module(f"wsi_assets.{name}")
    with pytest.raises(AttributeError, match=f"module 'wsi_assets.{name}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_importing_every_package_loads_no_library_of_its_own():
    code = "import sys\n" + "\n".join(f"import wsi_assets.{name}" for name in PACKAGES)
    heavy = ("numpy", "cv2", "torch", "shapely", "openslide", "pydantic", "matplotlib")
    code += f"\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
