"""Derived secrets: access tokens and page tokens."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.control.tokens import MAX_PAGE_TOKEN_CHARS, Tokens, load_seed
from firebrick.model.errors import Internal, Invalid
from firebrick.model.ids import SandboxId, TeamId

TOKENS = Tokens(b"s" * 32)
TEAM = TeamId("team_a")


def test_the_seed_is_made_once_and_is_private(tmp_path: Path) -> None:
    """The first call makes the file with mode 0600, every other reads the same; a damaged one is never replaced."""
    path = tmp_path / "new" / "seed"
    seed = load_seed(path)
    assert load_seed(path) == seed
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["seed"]
    path.write_bytes(b"short")
    with pytest.raises(Internal):
        load_seed(path)
    assert path.read_bytes() == b"short"


def test_access_tokens_depend_on_seed_and_sandbox() -> None:
    """Another sandbox or another seed gives another token; the same gives the same."""
    token = TOKENS.access_token(SandboxId("i1"))
    assert token == Tokens(b"s" * 32).access_token(SandboxId("i1"))
    assert len({token, TOKENS.access_token(SandboxId("i2")), Tokens(b"t" * 32).access_token(SandboxId("i1"))}) == 3


def test_page_tokens_are_bound_to_their_team() -> None:
    """A token opens for its own team only."""
    token = TOKENS.page_token(TEAM, {"t": "x", "i": "y"})
    assert TOKENS.read_page_token(TEAM, token) == {"t": "x", "i": "y"}
    with pytest.raises(Invalid, match="Invalid next token"):
        TOKENS.read_page_token(TeamId("team_b"), token)


@given(st.text(max_size=MAX_PAGE_TOKEN_CHARS + 10))
def test_no_text_is_a_page_token(text: str) -> None:
    """Whatever we did not sign is Invalid and raises nothing else."""
    with pytest.raises(Invalid):
        TOKENS.read_page_token(TEAM, text)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_page_token_is_refused(position: int, change: int) -> None:
    """Changing any one character makes a token Invalid."""
    token = TOKENS.page_token(TEAM, {"t": "2026-01-01", "i": "iabc", "n": True})
    index = position % len(token)
    other = chr((ord(token[index]) + change) % 128)
    if other == token[index]:
        return
    # The last character holds bits that no byte uses; another spelling of the same bytes is the same token.
    if index == len(token) - 1:
        return
    with pytest.raises(Invalid):
        TOKENS.read_page_token(TEAM, token[:index] + other + token[index + 1 :])
