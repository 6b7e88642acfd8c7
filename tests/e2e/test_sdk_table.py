"""The table of docs/compatibility.md claims no more than this very run showed."""

from pathlib import Path

import pytest

from tests.e2e.conftest import CALLED
from tests.support.sdk_calls import claimed, public_methods, why_not_offered


def test_the_table_of_methods_is_true(request: pytest.FixtureRequest) -> None:
    """Every "yes" was called by a test that passed on that runtime. In a run of some tests only, nothing is judged."""
    missing = {runtime: sorted(methods - CALLED.get(runtime, set())) for runtime, methods in claimed().items()}
    if is_whole_run(request.session):
        assert not any(missing.values()), f"claimed and not shown: {missing}"


def test_the_table_names_every_method() -> None:
    """What the installed SDK offers is in the table: as working everywhere, or with the reason why not."""
    shown = claimed()
    silent = [
        method
        for method in public_methods()
        if not all(method in methods for methods in shown.values()) and not why_not_offered(method)
    ]
    assert not silent


def is_whole_run(session: pytest.Session) -> bool:
    """All test files of this folder are in it, without a selection."""
    ran = {item.path for item in session.items}
    has_selection = bool(session.config.option.keyword) or any("::" in arg for arg in session.config.args)
    return not has_selection and all(path in ran for path in Path(__file__).parent.glob("test_*.py"))
