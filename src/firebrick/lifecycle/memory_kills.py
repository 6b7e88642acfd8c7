"""Who was killed for memory, from what several told of it. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

NEAR = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One line of a sandbox's log."""

    at: datetime
    message: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """`name` empty: it is not known which process; `pid` is inside's, None when unknown."""

    at: datetime
    name: str
    pid: int | None
    detail: str


def victims(lines: Iterable[Told]) -> tuple[Victim, ...]:
    """Oldest first. The host's kernel knows whom it killed, the guest agent under which id; the agent's guard both.
    Lines about no process in particular count only when nobody tells more."""
    told = sorted((line for line in lines if line.fields.get("limit") == "memory"), key=lambda line: line.at)
    kernel = [line for line in told if line.fields.get("source") == "kernel"]
    named = [line for line in told if line not in kernel and line.fields.get("name")]
    found = []
    for line in kernel:
        same = next((near for near in named if _is_same(line, near)), None)
        found.append(_victim(line, same or line))
        if same is not None:
            named.remove(same)
    found += [_victim(line, line) for line in named if "ended" in line.fields or not kernel]
    if not found:
        found = [_victim(line, line) for line in told]
    return tuple(sorted(found, key=lambda victim: victim.at))


def _is_same(kernel: Told, agent: Told) -> bool:
    """The kernel's word on the name, the agent's on the id."""
    is_near = abs(agent.at - kernel.at) <= NEAR
    pids = {line.fields["pid"] for line in (kernel, agent) if "pid" in line.fields}
    return is_near and len(pids) == 1 and agent.fields.get("name") == kernel.fields.get("name")


def _victim(line: Told, id_from: Told) -> Victim:
    name, number = line.fields.get("name", ""), _number(id_from.fields.get("pid"))
    others = (_number(line.fields.get("count")) or 1) - 1
    if name:
        detail = name + ("" if number is None else f" (pid {number})") + " was killed"
        detail += f", with {others} more of its session" if others > 0 else ""
    elif line.fields.get("source") == "kernel":
        detail = line.message.removeprefix("out of memory: ")
    else:
        detail = "a process was killed; which one is not known"
    return Victim(at=line.at, name=name, pid=number, detail=detail)


def _number(text: str | None) -> int | None:
    """What a guest may have written."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else None
