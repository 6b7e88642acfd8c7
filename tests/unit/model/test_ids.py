"""Ids: their alphabet, their length, and that none says anything."""

from firebrick.model.ids import is_machine_id, is_sandbox_id, new_machine_id, new_sandbox_id


def test_ids_are_dns_labels_of_one_length() -> None:
    """Sandbox ids fit into `<port>-<id>` as a DNS label without a dash; all ids of a kind are equally long."""
    sandboxes = {new_sandbox_id() for _ in range(2000)}
    machines = {new_machine_id() for _ in range(2000)}
    assert len(sandboxes) == len(machines) == 2000
    assert all(is_sandbox_id(text) and len(f"65535-{text}") <= 63 for text in sandboxes)
    assert all(is_machine_id(text) for text in machines)
    assert {len(text) for text in machines} == {20}


def test_what_only_looks_like_an_id_is_none() -> None:
    """A newline at the end, upper case, a dash or another length is not an id."""
    good = new_sandbox_id()
    for bad in (good + "\n", good.upper(), good[:-1], good + "a", good[:5] + "-" + good[6:], "", "nonexisting"):
        assert not is_sandbox_id(bad)
