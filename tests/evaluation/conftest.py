"""Small labeled images, and a run's directory with a checkpoint for them."""

import pytest

from support.evaluations import small_dataset, small_run


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def run(tmp_path_factory, data):
    return small_run(tmp_path_factory.mktemp("runs") / "run", data)
