"""The committed description of the API is the one that the code makes."""

import json
from pathlib import Path

from firebrick.api.app import create_app_for_openapi

DOCUMENT = Path(__file__).parents[3] / "api" / "control.openapi.json"


def test_the_committed_description_is_current() -> None:
    """api/control.openapi.json equals what the routes say."""
    assert json.loads(DOCUMENT.read_text()) == create_app_for_openapi().openapi()


def test_every_operation_but_the_public_ones_wants_a_key() -> None:
    """The description names the key for each operation, and every error has the one shape."""
    document = create_app_for_openapi().openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            is_public = path in ("/health", "/metrics")
            assert ("security" in operation) is not is_public, path
            assert is_public or "401" in operation["responses"]
