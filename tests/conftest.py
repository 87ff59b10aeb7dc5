"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pictures and annotations: $LIMBECK_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("LIMBECK_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no real data here; LIMBECK_DATA names its folder")
    return folder
