"""The node agent: owns everything that runs on one machine, and remembers enough on disk to adopt it again.

    supervisor.py   NodeAgent: what the control plane may ask; one actor per machine, one entry per sandbox
    sandbox_actor.py  one task that owns one machine from its start to its end
    machine.py      how a machine is started and torn down: each effect with its undo
    records.py      the small file per machine that a restart reads
    recovery.py     what a restart does with what it finds
    warm_pool.py    which ready machines to keep, decided purely
    guest_log.py    bounded logs of running and ended sandboxes
    capacity.py     how much this node promises
    service.py      the same, over gRPC

Must not know teams, templates' names, timeouts or the store: the control plane decides those.
"""
