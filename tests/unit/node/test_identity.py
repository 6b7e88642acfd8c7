"""A node's id and its lock."""

from pathlib import Path

import pytest

from firebrick.model.errors import WrongState
from firebrick.node.identity import load_node_id, sole_agent


def test_a_node_keeps_its_id(tmp_path: Path) -> None:
    """The same after every restart; another node has another."""
    assert load_node_id(tmp_path) == load_node_id(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    assert load_node_id(other) != load_node_id(tmp_path)


def test_only_one_agent_works_in_a_directory(tmp_path: Path) -> None:
    """The second is told so; after the first it may."""
    with sole_agent(tmp_path), pytest.raises(WrongState, match="Another node agent"), sole_agent(tmp_path):
        pass
    with sole_agent(tmp_path):
        pass
