"""A build's progress bar."""

from hypothesis import given
from hypothesis import strategies as st

from firebrick.builder.progress import PACKAGES_END, InstallProgress

LINES = [
    "0 upgraded, 2 newly installed, 0 to remove",
    "Get:1 http://mirror.test bookworm/main amd64 a",
    "Get:2 http://mirror.test bookworm/main amd64 b",
    "Unpacking a (1.0) ...",
    "Unpacking b (1.0) ...",
    "Setting up a (1.0) ...",
    "Setting up b (1.0) ...",
]


def test_a_whole_installation_ends_at_the_packages_share() -> None:
    """When the last package is set up, what remains is the image."""
    progress = InstallProgress()
    for line in LINES:
        progress.read(line)
    assert progress.share == PACKAGES_END
    assert progress.doing == "installing packages"


@given(st.lists(st.sampled_from([*LINES, "0 upgraded, 9 newly installed", "noise"])))
def test_progress_never_falls(lines: list[str]) -> None:
    """Whatever apt prints, in whatever order, the share stays in 0..1 and never falls."""
    progress = InstallProgress()
    shares = [progress.read(line) for line in lines]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
