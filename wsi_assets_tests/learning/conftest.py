"""A network small enough to train in a test."""

from __future__ import annotations

import pytest
import torch

from wsi_assets_tests.learning import tiny


@pytest.fixture(autouse=True, scope="session")
def _tiny_network():
    tiny.register()


@pytest.fixture(autouse=True)
def _one_thread():
    # The machine is shared, and these networks are too small for a second thread to help.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
