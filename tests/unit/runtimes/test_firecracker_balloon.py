"""When a guest is asked for what it has freed, and for how long."""

import pytest

from firebrick.runtimes.firecracker.balloon import MOST_MAPPINGS, SETTLED_MIB, Held, goes_on, is_worth


def held(anonymous_mib: int, mapping_count: int = 40) -> Held:
    return Held(anonymous_mib=anonymous_mib, mapping_count=mapping_count)


@pytest.mark.parametrize(
    ("now", "settled_mib", "expected"),
    [
        (held(120), SETTLED_MIB, False),
        (held(400), SETTLED_MIB, True),
        (held(400), 396, False),
        (held(470), 396, True),
        (held(400, MOST_MAPPINGS + 1), SETTLED_MIB, False),
    ],
)
def test_only_one_that_has_grown_is_asked(now: Held, settled_mib: int, expected: bool) -> None:
    """Since nothing more was to be had of it; and none whose memory lies in too many pieces already."""
    assert is_worth(now, settled_mib) is expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([held(400)], True),
        ([held(400), held(384)], True),
        ([held(400), held(390)], False),
        ([held(400), held(370), held(366)], True),
        ([held(400), held(370), held(366), held(362)], False),
        ([held(400), held(370), held(366), held(338)], True),
        ([held(400), held(402)], False),
        ([held(400), held(370, MOST_MAPPINGS + 1)], False),
    ],
)
def test_it_ends_where_nothing_is_gained(seen: list[Held], expected: bool) -> None:
    """One step may meet little, two may not."""
    assert goes_on(seen) is expected
