"""Whether the host has set enough huge pages aside for one machine more."""

from pathlib import Path

import pytest

from firebrick.model.errors import NoCapacity
from firebrick.model.ids import new_machine_id
from firebrick.runtimes.firecracker.huge_pages import Claim, HugePages, shortage


@pytest.mark.parametrize(
    ("wanted_mib", "free_mib", "claims", "missing_mib"),
    [
        (512, 512, (), 0),
        (512, 510, (), 2),
        (512, 1024, (Claim(promised_mib=512, taken_mib=0),), 0),
        (512, 1000, (Claim(promised_mib=512, taken_mib=24),), 0),
        (512, 900, (Claim(promised_mib=512, taken_mib=24),), 100),
        (512, 512, (Claim(promised_mib=512, taken_mib=512), Claim(promised_mib=256, taken_mib=300)), 0),
    ],
)
def test_what_was_promised_counts(wanted_mib: int, free_mib: int, claims: tuple[Claim, ...], missing_mib: int) -> None:
    """And not what was taken of it: a machine that finds no page any more is killed."""
    assert shortage(wanted_mib=wanted_mib, free_mib=free_mib, claims=claims) == missing_mib


def test_a_machine_that_does_not_fit_is_refused_with_the_mend(tmp_path: Path) -> None:
    """Until another ends. A host without such pages has none."""
    first, second = new_machine_id(), new_machine_id()
    with pytest.raises(NoCapacity) as caught:
        HugePages(tmp_path).promise(first, 512, {})
    assert "vm.nr_hugepages=256" in caught.value.detail
    for name in ("nr_hugepages", "free_hugepages"):
        (tmp_path / name).write_text("300\n")
    pages = HugePages(tmp_path)
    pages.promise(first, 512, {})
    with pytest.raises(NoCapacity, match="512 MiB do not fit") as caught:
        pages.promise(second, 512, {first: None})
    assert "vm.nr_hugepages=512" in caught.value.detail
    pages.forget(first)
    pages.forget(first)
    pages.promise(second, 512, {})
    assert pages.machines == (second,)
