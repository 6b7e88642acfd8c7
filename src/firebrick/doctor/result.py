"""What one probe of the machine found."""

from dataclasses import dataclass
from enum import StrEnum


class ProbeStatus(StrEnum):
    """`absent`: not there, and nothing is wrong with that."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """One line of the report.

    Attributes:
        name: what was probed: a runtime's name for runtimes, else a noun.
        summary: what was found, in a few words.
        why: what it means when it is not ok.
        mend: commands that mend it, each an argv; empty when no command does.
        advice: commands for the machine's owner to decide about, because more than sandboxes depends on it; we never
            run them.
        required: without it no sandbox can run.
    """

    name: str
    status: ProbeStatus
    summary: str
    why: str = ""
    mend: tuple[tuple[str, ...], ...] = ()
    advice: tuple[tuple[str, ...], ...] = ()
    required: bool = False
