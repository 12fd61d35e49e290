"""What the tests of several examples read."""

import pytest

from examples.data import vocabulary


@pytest.fixture(scope="session")
def words():
    """The committed vocabulary of both languages."""
    return vocabulary.load()
