"""Which ready machines to keep: a decision from views, without effects.

A key is hot when the settings say so, or for a while after a sandbox used it. Hot keys get `warm_count` ready
machines each, or as many as their last bursts of creates took (`warm_demand`), as far as memory and slots allow, and
never at the cost of a sandbox that is being started: a refill begins only when nobody waits and the last create is a
moment ago, because the machine's CPUs are better spent on that sandbox's first command.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from firebrick.model.ids import MachineId
from firebrick.node.drivers import WarmKey

HOT_FOR_S = 900.0
QUIET_S = 0.15
SLOTS_LEFT_FREE = 2
SLOT_LOOK_S = 0.5
ASSUMED_MEMORY_BYTES = 48 << 20
"""Of a warm machine before one of its key was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmMachine:
    """One machine that nobody has. `memory_bytes` None: not measured yet. `is_ready` False: still starting."""

    machine_id: MachineId
    key: WarmKey
    is_ready: bool
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmView:
    """The node at one moment. `..._s` are on the monotonic clock; `measured_bytes` is the most that machines of
    a key were seen to use, also former ones: else a key too big for the pool would be started again and again.
    `demand`: how many of a key are likely to be wanted at once."""

    now_s: float
    always_hot: tuple[WarmKey, ...]
    last_used_s: dict[WarmKey, float]
    retry_at_s: dict[WarmKey, float]
    measured_bytes: dict[WarmKey, int]
    machines: tuple[WarmMachine, ...]
    starting_count: int
    last_create_s: float
    free_slot_count: int
    demand: dict[WarmKey, int] = field(default_factory=dict)

    def wanted_count(self, key: WarmKey, limits: "WarmLimits") -> int:
        """Ready machines of a hot key, if there were memory and slots for all."""
        return max(limits.count, self.demand.get(key, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmLimits:
    """`count`: the least of each hot key; 0 turns the pool off."""

    count: int
    memory_bytes: int
    start_concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefillPlan:
    """What to do now, and when to look again at the latest (None: when something changes). `wanted_count`: of all
    keys, before memory and slots bound it."""

    start: tuple[WarmKey, ...] = ()
    end: tuple[MachineId, ...] = ()
    look_again_s: float | None = None
    wanted_count: int = 0


def decide_refill(view: WarmView, limits: WarmLimits) -> RefillPlan:
    """Choose which warm machines to start and which to end."""
    hot = _hot_keys(view, limits)
    end = _surplus(view, limits, hot)
    kept = [machine for machine in view.machines if machine.machine_id not in end]
    wanted = _missing(view, limits, hot, kept)
    look_again_s = _next_look(view, hot)
    wanted_count = sum(view.wanted_count(key, limits) for key in hot)
    if not wanted:
        return RefillPlan(end=end, look_again_s=look_again_s, wanted_count=wanted_count)
    quiet_s = view.now_s - view.last_create_s
    if view.starting_count > 0 or quiet_s < QUIET_S:
        return RefillPlan(end=end, look_again_s=max(QUIET_S - quiet_s, 0.05), wanted_count=wanted_count)
    in_flight = sum(not machine.is_ready for machine in kept)
    places = min(max(1, limits.start_concurrency // 2) - in_flight, view.free_slot_count - SLOTS_LEFT_FREE)
    fitting = _fitting(view, limits, kept, wanted)
    if fitting and view.free_slot_count <= SLOTS_LEFT_FREE:
        # Slots become free behind our back: the pool makes them, and resets those that were given back.
        look_again_s = SLOT_LOOK_S
    return RefillPlan(
        start=fitting[: max(0, places)], end=end, look_again_s=look_again_s, wanted_count=wanted_count
    )  # fmt: skip


def _hot_keys(view: WarmView, limits: WarmLimits) -> tuple[WarmKey, ...]:
    """Most lately used first, so that scarce memory goes where it is likely to be used."""
    if limits.count <= 0:
        return ()
    used = {key: used_s for key, used_s in view.last_used_s.items() if view.now_s - used_s < HOT_FOR_S}
    keys = dict.fromkeys([*used, *view.always_hot])
    return tuple(sorted(keys, key=lambda key: -used.get(key, float("-inf"))))


def _surplus(view: WarmView, limits: WarmLimits, hot: Sequence[WarmKey]) -> tuple[MachineId, ...]:
    """Machines of keys that are no longer hot, too many of a key, or beyond the memory: coldest keys first."""
    rank = {key: position for position, key in enumerate(hot)}
    seen: Counter[WarmKey] = Counter()
    used_bytes = 0
    surplus: list[MachineId] = []
    ordered = sorted(view.machines, key=lambda machine: (rank.get(machine.key, len(hot)), not machine.is_ready))
    for machine in ordered:
        needed = _memory_of(machine, view)
        too_many = seen[machine.key] >= view.wanted_count(machine.key, limits)
        if machine.key not in rank or too_many or used_bytes + needed > limits.memory_bytes:
            surplus.append(machine.machine_id)
            continue
        seen[machine.key] += 1
        used_bytes += needed
    return tuple(surplus)


def _missing(
    view: WarmView, limits: WarmLimits, hot: Sequence[WarmKey], kept: Sequence[WarmMachine]
) -> tuple[WarmKey, ...]:
    have = Counter(machine.key for machine in kept)
    counts = {key: view.wanted_count(key, limits) for key in hot}
    # One of each first, then the second of each: a key without any gains most.
    return tuple(
        key
        for wanted in range(1, max((counts[key] for key in hot), default=0) + 1)
        for key in hot
        if have[key] < wanted <= counts[key] and view.retry_at_s.get(key, 0.0) <= view.now_s
    )


def _fitting(
    view: WarmView, limits: WarmLimits, kept: Sequence[WarmMachine], wanted: Sequence[WarmKey]
) -> tuple[WarmKey, ...]:
    """Those of `wanted` that fit into the memory beside the machines that stay."""
    left_bytes = limits.memory_bytes - sum(_memory_of(machine, view) for machine in kept)
    fitting: list[WarmKey] = []
    for key in wanted:
        needed = view.measured_bytes.get(key, ASSUMED_MEMORY_BYTES)
        if needed <= left_bytes:
            fitting.append(key)
            left_bytes -= needed
    return tuple(fitting)


def _memory_of(machine: WarmMachine, view: WarmView) -> int:
    if machine.memory_bytes is not None:
        return machine.memory_bytes
    return view.measured_bytes.get(machine.key, ASSUMED_MEMORY_BYTES)


def _next_look(view: WarmView, hot: Sequence[WarmKey]) -> float | None:
    """The next moment at which waiting alone changes the answer."""
    cooling = [view.last_used_s[key] + HOT_FOR_S for key in hot if key in view.last_used_s]
    retries = [at_s for at_s in view.retry_at_s.values() if at_s > view.now_s]
    return max(0.05, min([*cooling, *retries]) - view.now_s) if cooling or retries else None
