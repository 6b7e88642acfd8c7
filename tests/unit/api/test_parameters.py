"""What stands in URLs, decoded and bounded."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebrick.api.parameters import (
    parse_metadata_filter,
    parse_sandbox_id,
    parse_sandbox_ids,
    parse_states,
    parse_template_filter,
)
from firebrick.model.errors import Invalid, NotFound
from firebrick.model.ids import new_sandbox_id
from firebrick.model.sandbox import SandboxState


def test_both_spellings_of_an_id() -> None:
    """An id with and without a client id after a dash means the same sandbox."""
    sandbox_id = new_sandbox_id()
    assert parse_sandbox_id(sandbox_id) == sandbox_id
    assert parse_sandbox_id(f"{sandbox_id}-6532622b") == sandbox_id


@pytest.mark.parametrize("text", ["nonexistingsandbox", "i", "abc-def", "a" * 64])
def test_a_word_is_not_found(text: str) -> None:
    """A plain word that is no id is an unknown sandbox, as clients expect."""
    with pytest.raises(NotFound, match="doesn't exist or you don't have access to it"):
        parse_sandbox_id(text)


@pytest.mark.parametrize("text", ["", "-x", "a" * 65, "Abc", "..", "$(id)", "i\n", "%s", "'; drop", "é", "\0"])
def test_anything_else_is_invalid(text: str) -> None:
    """What could never be an id is refused before it reaches anything."""
    with pytest.raises(Invalid, match="Invalid sandbox ID"):
        parse_sandbox_id(text)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(text, text, min_size=1, max_size=5))
def test_any_metadata_survives_its_encoding(pairs: dict[str, str]) -> None:
    """What clients encode (each part, then the whole, then the URL) is decoded to the same pairs."""
    encoded = quote("&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in pairs.items()))
    assert parse_metadata_filter(encoded) == pairs


def test_metadata_from_the_wire() -> None:
    """The recorded example of E2B's clients."""
    assert parse_metadata_filter("a%2520b=c%2526d") == {"a b": "c&d"}
    assert parse_metadata_filter(None) == {}
    assert parse_metadata_filter("") == {}


@pytest.mark.parametrize("text", ["a", "a=b=c", "a=b&", "%ff=1", "a=%25ff"])
def test_bad_metadata_is_refused(text: str) -> None:
    """No pair, two equal signs, an empty pair or broken UTF-8 are Invalid."""
    with pytest.raises(Invalid):
        parse_metadata_filter(text)


def test_states_and_templates() -> None:
    """States are comma-joined; both is the default; a template filter takes no tag."""
    assert parse_states("running") == {SandboxState.RUNNING}
    assert parse_states(None) == parse_states("running,paused")
    assert SandboxState.PAUSED in parse_states("paused")
    with pytest.raises(Invalid):
        parse_states("dead")
    assert parse_template_filter(" Base ") == "base"
    assert parse_template_filter("") is None
    with pytest.raises(Invalid):
        parse_template_filter("base:v1")


def test_many_ids() -> None:
    """Repeats and unknown words are left out; more than 100 are refused."""
    one = new_sandbox_id()
    assert parse_sandbox_ids(f"{one},{one}-client,nonsense") == [one]
    with pytest.raises(Invalid):
        parse_sandbox_ids(",".join(new_sandbox_id() for _ in range(101)))
