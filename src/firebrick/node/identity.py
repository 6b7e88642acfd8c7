"""Who this node is, and that only one agent at a time is it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firebrick.model.errors import WrongState
from firebrick.model.ids import ALPHABET, NodeId

_PREFIX = "nod_"


def load_node_id(node_dir: Path) -> NodeId:
    """The node's id, made the first time and the same ever after."""
    path = node_dir / "node_id"
    if path.is_file() and (text := path.read_text().strip()).startswith(_PREFIX):
        return NodeId(text)
    node_id = _PREFIX + "".join(ALPHABET[byte % len(ALPHABET)] for byte in os.urandom(16))
    fresh = path.with_suffix(".new")
    fresh.write_text(node_id + "\n")
    fresh.rename(path)
    return NodeId(node_id)


@contextmanager
def sole_agent(node_dir: Path) -> Iterator[None]:
    """Hold the node's directory: two agents would each clean up what the other runs.

    The kernel releases it when the process ends, however it ends. Raises WrongState when another holds it.
    """
    descriptor = os.open(node_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise WrongState(f"Another node agent works in {node_dir}; stop it first (`firebrick down`).") from exc
        yield
    finally:
        os.close(descriptor)
