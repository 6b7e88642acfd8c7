"""decide_refill: which ready machines to keep."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from firebrick.model.ids import BuildId, MachineId
from firebrick.model.machine import Limits, RuntimeName
from firebrick.node.drivers import WarmKey
from firebrick.node.warm_pool import (
    ASSUMED_MEMORY_BYTES,
    HOT_FOR_S,
    QUIET_S,
    SLOT_LOOK_S,
    SLOTS_LEFT_FREE,
    WarmLimits,
    WarmMachine,
    WarmView,
    decide_refill,
)

MIB = 1 << 20
SIZES = Limits(millicpu=1000, memory_mib=512, disk_mib=1024, process_count=100)
BASE = WarmKey(build_id=BuildId("base"), runtime=RuntimeName.GVISOR, limits=SIZES)
OTHER = replace(BASE, build_id=BuildId("other"))
LIMITS = WarmLimits(count=2, memory_bytes=512 * MIB, start_concurrency=4)
NOW_S = 10_000.0
VIEW = WarmView(
    now_s=NOW_S,
    always_hot=(BASE,),
    last_used_s={},
    retry_at_s={},
    measured_bytes={},
    machines=(),
    starting_count=0,
    last_create_s=NOW_S - 60,
    free_slot_count=50,
)


def machine(name: str, key: WarmKey = BASE, *, ready: bool = True, mib: int | None = 40) -> WarmMachine:
    return WarmMachine(
        machine_id=MachineId(name), key=key, is_ready=ready, memory_bytes=None if mib is None else mib * MIB
    )


def test_an_empty_pool_of_a_hot_key_is_filled() -> None:
    """As many as the count says, at once as far as concurrency allows."""
    assert decide_refill(VIEW, LIMITS).start == (BASE, BASE)


def test_a_full_pool_is_left_alone() -> None:
    """Nothing to start, nothing to end, nothing to wait for."""
    plan = decide_refill(replace(VIEW, machines=(machine("a"), machine("b"))), LIMITS)
    assert (plan.start, plan.end, plan.look_again_s) == ((), (), None)


def test_a_count_of_zero_turns_the_pool_off() -> None:
    """Also for machines that are there already."""
    plan = decide_refill(replace(VIEW, machines=(machine("a"),)), replace(LIMITS, count=0))
    assert (plan.start, plan.end) == ((), ("a",))


def test_a_sandbox_that_starts_goes_first() -> None:
    """While somebody waits, and for a moment after, nothing is refilled; then it is looked at again."""
    busy = decide_refill(replace(VIEW, starting_count=1), LIMITS)
    just_now = decide_refill(replace(VIEW, last_create_s=NOW_S - QUIET_S / 2), LIMITS)
    for plan in (busy, just_now):
        assert plan.start == ()
        assert plan.look_again_s is not None
        assert plan.look_again_s <= QUIET_S


def test_slots_are_left_for_sandboxes() -> None:
    """The last free slots are nobody's warm machines'."""
    none_free = decide_refill(replace(VIEW, free_slot_count=SLOTS_LEFT_FREE), LIMITS)
    assert (none_free.start, none_free.look_again_s) == ((), SLOT_LOOK_S)
    assert decide_refill(replace(VIEW, free_slot_count=SLOTS_LEFT_FREE + 1), LIMITS).start == (BASE,)


def test_memory_bounds_the_pool() -> None:
    """What was measured counts, also of machines that are gone."""
    big = replace(VIEW, measured_bytes={BASE: 300 * MIB})
    assert decide_refill(big, LIMITS).start == (BASE,)
    assert decide_refill(replace(VIEW, measured_bytes={BASE: 600 * MIB}), LIMITS).start == ()
    over = replace(VIEW, machines=(machine("a", mib=400), machine("b", mib=400)), measured_bytes={BASE: 400 * MIB})
    assert decide_refill(over, LIMITS).end == ("b",)


def test_a_used_key_is_hot_for_a_while() -> None:
    """Then its machines are ended, at the moment that was told."""
    used = replace(VIEW, always_hot=(), last_used_s={OTHER: NOW_S - 10})
    plan = decide_refill(used, LIMITS)
    assert plan.start == (OTHER, OTHER)
    assert plan.look_again_s == HOT_FOR_S - 10
    cold = replace(used, last_used_s={OTHER: NOW_S - HOT_FOR_S}, machines=(machine("a", OTHER),))
    assert decide_refill(cold, LIMITS).end == ("a",)


def test_each_hot_key_gets_its_first_before_any_gets_its_second() -> None:
    """The most lately used key comes first."""
    plan = decide_refill(replace(VIEW, last_used_s={OTHER: NOW_S - 10}), replace(LIMITS, start_concurrency=8))
    assert plan.start == (OTHER, BASE, OTHER, BASE)


def test_a_key_that_failed_waits() -> None:
    """Until its time; and the plan says when."""
    plan = decide_refill(replace(VIEW, retry_at_s={BASE: NOW_S + 7}), LIMITS)
    assert plan.start == ()
    assert plan.look_again_s == 7


def test_demand_makes_the_pool_grow_and_quiet_shrinks_it() -> None:
    """As many as the last burst took, within memory; without the burst the surplus is ended."""
    burst = replace(VIEW, demand={BASE: 9, OTHER: 9})
    wide = replace(LIMITS, start_concurrency=40)
    plan = decide_refill(burst, wide)
    assert (plan.start, plan.wanted_count) == ((BASE,) * 9, 9)
    assert len(decide_refill(replace(burst, measured_bytes={BASE: 100 * MIB}), wide).start) == 5
    machines = tuple(machine(name) for name in "abcdefghi")
    assert decide_refill(replace(burst, machines=machines), LIMITS).end == ()
    assert len(decide_refill(replace(VIEW, machines=machines, demand={BASE: 4}), LIMITS).end) == 5


def test_demand_does_not_turn_a_pool_on() -> None:
    """A count of zero stays zero."""
    plan = decide_refill(replace(VIEW, demand={BASE: 9}), replace(LIMITS, count=0))
    assert (plan.start, plan.wanted_count) == ((), 0)


@given(
    machines=st.lists(
        st.builds(
            WarmMachine,
            machine_id=st.uuids().map(lambda value: MachineId(str(value))),
            key=st.sampled_from([BASE, OTHER]),
            is_ready=st.booleans(),
            memory_bytes=st.one_of(st.none(), st.integers(1, 700 * MIB)),
        ),
        max_size=6,
    ),
    measured=st.dictionaries(st.sampled_from([BASE, OTHER]), st.integers(1, 700 * MIB)),
    used=st.dictionaries(st.sampled_from([BASE, OTHER]), st.floats(NOW_S - 2000, NOW_S)),
    free=st.integers(0, 10),
    count=st.integers(0, 3),
    demand=st.dictionaries(st.sampled_from([BASE, OTHER]), st.integers(0, 5)),
)
def test_a_plan_never_exceeds_its_bounds(
    machines: list[WarmMachine],
    measured: dict[WarmKey, int],
    used: dict[WarmKey, float],
    free: int,
    count: int,
    demand: dict[WarmKey, int],
) -> None:
    """After the plan: no more of a key than wanted, memory within its bound, slots left, no key ended and started."""
    view = replace(
        VIEW, machines=tuple(machines), measured_bytes=measured, last_used_s=used, free_slot_count=free, demand=demand
    )  # fmt: skip
    limits = replace(LIMITS, count=count)
    plan = decide_refill(view, limits)
    kept = [machine for machine in machines if machine.machine_id not in plan.end]
    keys = [machine.key for machine in kept] + list(plan.start)
    assert all(keys.count(key) <= (max(count, demand.get(key, 0)) if count else 0) for key in (BASE, OTHER))
    sizes = [machine.memory_bytes or measured.get(machine.key, ASSUMED_MEMORY_BYTES) for machine in kept]
    sizes += [measured.get(key, ASSUMED_MEMORY_BYTES) for key in plan.start]
    assert sum(sizes) <= limits.memory_bytes
    assert len(plan.start) <= max(0, free - SLOTS_LEFT_FREE)
    assert len(set(plan.end)) == len(plan.end)
