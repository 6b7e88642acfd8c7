"""Typed ids. Every id is minted here, so that its alphabet and length hold everywhere it is used.

Sandbox ids look like E2B's (`i` + 20 characters): they are DNS labels without a dash, because the edge
splits `<port>-<id>[-<clientID>]` at the first dash. Machine ids have one fixed length because `runsc`
resolves ids by prefix: with equal lengths no id can be the prefix of another.
"""

import re
import secrets
import string
from typing import NewType

SandboxId = NewType("SandboxId", str)
MachineId = NewType("MachineId", str)
TemplateId = NewType("TemplateId", str)
BuildId = NewType("BuildId", str)
TeamId = NewType("TeamId", str)
KeyId = NewType("KeyId", str)
UserId = NewType("UserId", str)
TokenId = NewType("TokenId", str)
NodeId = NewType("NodeId", str)
SnapshotId = NewType("SnapshotId", str)

ALPHABET = string.ascii_lowercase + string.digits
SANDBOX_ID_CHARS = 20
MACHINE_ID_CHARS = 19

SANDBOX_ID_PATTERN = re.compile(rf"i[a-z0-9]{{{SANDBOX_ID_CHARS}}}\Z")
MACHINE_ID_PATTERN = re.compile(rf"m[a-z0-9]{{{MACHINE_ID_CHARS}}}\Z")
SNAPSHOT_ID_PATTERN = re.compile(r"s[a-z0-9]{19}\Z")


def _random(count: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(count))


def new_sandbox_id() -> SandboxId:
    """Mint an id of 103 random bits, a valid DNS label."""
    return SandboxId("i" + _random(SANDBOX_ID_CHARS))


def new_machine_id() -> MachineId:
    """Mint the id of one machine: what a runtime starts and destroys. 20 characters, always."""
    return MachineId("m" + _random(MACHINE_ID_CHARS))


def new_template_id() -> TemplateId:
    """Mint an id that reads like E2B's: 20 characters."""
    return TemplateId("t" + _random(19))


def new_snapshot_id() -> SnapshotId:
    """Mint the id by which nodes know one snapshot; it names files. Users see names of the control plane."""
    return SnapshotId("s" + _random(19))


def is_sandbox_id(text: str) -> bool:
    return SANDBOX_ID_PATTERN.match(text) is not None


def is_machine_id(text: str) -> bool:
    return MACHINE_ID_PATTERN.match(text) is not None


def is_snapshot_id(text: str) -> bool:
    return SNAPSHOT_ID_PATTERN.match(text) is not None
