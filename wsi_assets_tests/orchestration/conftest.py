"""Fixtures of the tests of the graph."""

from __future__ import annotations

import dagster as dg
import pytest


@pytest.fixture
def some_job() -> dg.JobDefinition:
    """A job that does nothing, for runs that only have to be there."""

    @dg.op
    def nothing():
        pass

    @dg.job
    def does_nothing():
        nothing()

    return does_nothing
