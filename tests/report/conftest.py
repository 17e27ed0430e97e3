import pytest
from runs_for_tests import COLOURED, GREY, train


@pytest.fixture(scope="package")
def grey(tmp_path_factory):
    """The workdir of a run on digits."""
    return train(tmp_path_factory.mktemp("runs") / "grey", **GREY)


@pytest.fixture(scope="package")
def coloured(tmp_path_factory):
    """The workdir of a run on shapes."""
    return train(tmp_path_factory.mktemp("runs") / "coloured", **COLOURED)
