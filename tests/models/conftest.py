"""The tiny models in double precision, so that what is compared differs by far less than any tolerance."""

from __future__ import annotations

import copy

import pytest


@pytest.fixture(scope="session")
def exact_models(tiny_models):
    """`exact_models(family)` -> the tiny model with float64 weights. Do not change them."""
    models = {}

    def get(family: str):
        if family not in models:
            models[family] = copy.deepcopy(tiny_models(family).model).double()
        return models[family]

    return get
