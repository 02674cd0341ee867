"""Versions of an image that changes between backups, against a list of its bytes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.audit import audit
from tests.support.repositories import BLOCK, back_up, make_repository, opened, restored

pytestmark = pytest.mark.slow


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_version_of_a_changing_image_comes_back(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("changing")
    pieces = st.binary(min_size=0, max_size=200).map(lambda seed: seed * 60) | st.just(bytes(BLOCK))
    with opened(make_repository(directory / "repository", block_size=512)) as repository:
        image = b""
        expected = []
        for _ in range(data.draw(st.integers(1, 5))):
            offset = data.draw(st.integers(0, len(image) + 600))
            piece = data.draw(pieces)
            image = image.ljust(offset, b"\0")[:offset] + piece + image[offset + len(piece) :]
            image = image[: data.draw(st.integers(0, len(image)))] if data.draw(st.booleans()) else image
            (directory / "image").write_bytes(image)
            expected.append((back_up(repository, directory / "image").version, image))
        for version, content in expected:
            assert restored(repository, version, directory) == content
        audit(repository)
