"""When a sandbox counts as idle."""

from datetime import timedelta

import pytest

from firebrick.lifecycle.idle import IdleMark, idle_mark, is_idle
from tests.support.rows import NOW


def marks(*shares: float, generation: int = 1) -> IdleMark:
    """The mark after readings 5 s apart, between which those shares of a core were used; the last has `generation`."""
    mark = idle_mark(None, read_at=NOW, cpu_ns=0, generation=1)
    cpu_ns = 0
    for number, share in enumerate(shares, 1):
        cpu_ns += round(share * 5e9)
        at = NOW + timedelta(seconds=5 * number)
        mark = idle_mark(mark, read_at=at, cpu_ns=cpu_ns, generation=generation if number == len(shares) else 1)
    return mark


@pytest.mark.parametrize("rest", [0.0, 0.001, 0.025], ids=["nothing", "container", "gvisor"])
def test_rest_is_idle_at_the_second_it_is_reached(rest: float) -> None:
    """Whatever being there costs on a runtime, a sandbox at rest for the whole time is idle."""
    assert not is_idle(marks(rest, rest, rest), 20)
    assert is_idle(marks(rest, rest * 1.1, rest, rest), 20)
    assert not is_idle(marks(rest, rest, rest, rest), None)


@pytest.mark.parametrize("rest", [0.0, 0.025])
def test_a_single_command_is_work(rest: float) -> None:
    """40 ms of CPU between two readings set the time back."""
    assert marks(rest, rest, rest + 0.008).since == NOW + timedelta(seconds=15)


def test_a_sandbox_that_never_rests_is_not_idle() -> None:
    """A share that a sandbox has all the time is work all the same, above what rest can cost."""
    assert marks(1.0, 1.0, 1.0).since == NOW + timedelta(seconds=15)
    assert marks(0.07, 0.07, 0.07).since == NOW + timedelta(seconds=15)


def test_requests_and_new_machines_begin_anew() -> None:
    """A change of the row and a counter that went back each set the time back."""
    assert marks(0.0, 0.0, generation=2).since == NOW + timedelta(seconds=10)
    assert marks(0.01, -0.01).since == NOW + timedelta(seconds=10)
