"""The environment that a process under test starts with."""

import os

FOREIGN_PREFIXES = ("E2B_", "FIREBRICK_")


def clean_environ() -> dict[str, str]:
    """Ours, without settings of Firebrick and of its clients: only those that a test gives may reach its process."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_PREFIXES)}
