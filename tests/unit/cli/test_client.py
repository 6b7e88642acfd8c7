"""How the command line speaks with the API."""

import os

import pytest

from firebrick.cli.client import open_client
from tests.support.environment import clean_environ


@pytest.mark.parametrize(("patience", "timeout_s"), [("1", 60.0), ("10", 600.0)])
def test_a_slow_machines_answers_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, patience: str, timeout_s: float
) -> None:
    """A create takes as long as the machine is slow: the client gives up no sooner than the server may."""
    for name in os.environ.keys() - clean_environ().keys():
        monkeypatch.delenv(name)
    for name in ("API_URL", "SANDBOX_URL", "API_KEY"):
        monkeypatch.setenv(f"E2B_{name}", "http://127.0.0.1:1")
    monkeypatch.setenv("FIREBRICK_PATIENCE", patience)
    client = open_client()
    assert client.timeout_s == timeout_s
    client.close()
