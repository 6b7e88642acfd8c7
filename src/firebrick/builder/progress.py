"""How far a package installation is, read from what apt and dpkg print. Pure."""

import re

# Shares of the whole, from measured builds on 2 cores: fetching 15 %, packages 70 %, image 15 %.
_FETCH_END = 0.15
PACKAGES_END = 0.85

_TOTAL = re.compile(r"(\d+) newly installed")
_STEPS = ("Unpacking ", "Setting up ")


class InstallProgress:
    """Feed it every line; it answers with a share of 0..1 that never falls."""

    def __init__(self) -> None:
        self._planned_count = 0
        self._fetched_count = 0
        self._step_count = 0
        self.share = 0.0
        self.doing = "reading package lists"

    def read(self, line: str) -> float:
        if match := _TOTAL.search(line):
            # apt is asked several times (essential packages, then the rest): a later plan includes earlier ones.
            self._planned_count = max(self._planned_count, int(match[1]))
        elif self._planned_count and line.startswith("Get:"):
            self._fetched_count += 1
            self.doing = "fetching packages"
        elif line.startswith(_STEPS):
            self._step_count += 1
            self.doing = "installing packages"
        else:
            return self.share
        fetched = _ratio(self._fetched_count, self._planned_count)
        installed = _ratio(self._step_count, 2 * self._planned_count)
        share = _FETCH_END * fetched + (PACKAGES_END - _FETCH_END) * installed
        self.share = max(self.share, share)
        return self.share


def _ratio(part: int, whole: int) -> float:
    return min(part / whole, 1.0) if whole else 0.0
