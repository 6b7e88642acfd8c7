"""What a slot's parts are called and which addresses they have: pure, from the instance and the index.

Everything of an instance bears its four-letter name, so that several instances share a machine and a later
process finds the objects of an earlier one. A name is ours only if it matches to the last letter: `fb-ab12-s7` is,
`fb-ab12-s7-old`, `fb-ab12-s07` and `fb-ab123-s7` are somebody else's.
"""

import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from firebrick.linux.netns import NETNS_DIR
from firebrick.model.errors import Invalid
from firebrick.network.base import Slot

LARGEST_INDEX = 99_999
"""So that a link's name stays within the kernel's 15 letters."""


def instance_name(data_dir: Path) -> str:
    """Four letters and digits that stand for this data directory on this machine; always the same."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    number = int.from_bytes(hashlib.sha256(str(data_dir.absolute()).encode()).digest()[:8])
    return "".join(digits[number // 36**place % 36] for place in range(4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The names and addresses of one instance's slots.

    A slot has two addresses of `prefix`: the host's end of its link and, one above, its own. Where in the prefix
    an instance begins depends on its name, so that two instances with the same prefix rarely meet; when they do,
    the later one says so.
    """

    instance: str
    prefix: IPv4Network

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]{4}", self.instance):
            raise Invalid(f"An instance is named by four letters or digits, not '{self.instance}'.")
        if not 8 <= self.prefix.prefixlen <= 30:
            raise Invalid(f"Setting 'network_prefix' must be a network from /8 to /30, not {self.prefix}.")

    @property
    def capacity_count(self) -> int:
        """The most slots that the prefix has addresses for."""
        return min(self.prefix.num_addresses // 2, LARGEST_INDEX + 1)

    @property
    def table(self) -> str:
        return f"firebrick_{self.instance}"

    @property
    def link_group(self) -> int:
        """The kernel's number for "all links that are being removed"; 31 bits nobody else picks."""
        return int.from_bytes(hashlib.sha256(f"firebrick links {self.instance}".encode()).digest()[:4]) >> 1 | 1 << 30

    @property
    def filter_uid(self) -> int:
        """The user that the name filter runs as: nobody else's, below those of machines in user namespaces."""
        return 0x6FB0_0000 + int.from_bytes(hashlib.sha256(f"firebrick filter {self.instance}".encode()).digest()[:2])

    def slot_netns(self, index: int) -> str:
        return f"fb-{self.instance}-s{index}"

    def guest_netns(self, index: int) -> str:
        return f"fb-{self.instance}-g{index}"

    def host_link(self, index: int) -> str:
        return f"fb{self.instance}h{index}"

    def host_address(self, index: int) -> IPv4Address:
        """The host's end of the slot's /31."""
        digest = hashlib.sha256(f"firebrick addresses {self.instance}".encode()).digest()
        offset = int.from_bytes(digest[:8]) % (self.prefix.num_addresses // 2)
        place = (offset + index) % (self.prefix.num_addresses // 2)
        return self.prefix.network_address + 2 * place

    def address(self, index: int) -> IPv4Address:
        return self.host_address(index) + 1

    def slot(self, index: int) -> Slot:
        return Slot(index=index, address=self.address(index), netns=NETNS_DIR / self.guest_netns(index))

    def index_of_netns(self, name: str) -> int | None:
        """The slot that a namespace of this name belongs to; None when it is not ours."""
        return _index(rf"fb-{self.instance}-[sg](0|[1-9]\d{{0,4}})", name)

    def index_of_link(self, name: str) -> int | None:
        return _index(rf"fb{self.instance}h(0|[1-9]\d{{0,4}})", name)


def _index(pattern: str, name: str) -> int | None:
    match = re.fullmatch(pattern, name, re.ASCII)
    return int(match[1]) if match else None
