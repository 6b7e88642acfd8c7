"""What the terminal shows."""

import pytest

from firebrick.cli.console import fail, pairs, reports_errors, table
from firebrick.cli.sandbox import _span
from firebrick.model.errors import NotFound


def test_pairs_split_at_the_first_sign() -> None:
    """KEY=VALUE keeps every further sign in the value; without a sign or a key it is refused with status 2."""
    assert pairs("--env", ["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for wrong in ("A", "=1"):
        with pytest.raises(SystemExit) as caught:
            pairs("--env", [wrong])
        assert caught.value.code == 2


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """An error of ours becomes one line on standard error and status 1; anything else stays a traceback."""

    @reports_errors
    def missing() -> None:
        raise NotFound("no such [thing]")

    with pytest.raises(SystemExit) as caught:
        missing()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "firebrick: no such [thing]\n"

    @reports_errors
    def bug() -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        bug()


def test_fail_takes_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    """`fail` ends the program with the status it is given."""
    with pytest.raises(SystemExit) as caught:
        fail("wrong option", status=2)
    assert caught.value.code == 2


def test_tables_cut_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as their widest cell, whatever the terminal."""
    table(("id", "state"), [("i" * 90, "running"), ("short", "paused")])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "STATE"]
    assert first.split() == ["i" * 90, "running"]
    assert second.index("paused") == first.index("running") == head.index("STATE")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-5, "0 s"), (59, "59 s"), (150, "2 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_spans_are_short(seconds: float, shown: str) -> None:
    """A time is told in its largest unit that is at least two."""
    assert _span(seconds) == shown
