"""What the host told the agent about its sandbox. One object, written by /init only."""

import os

from firebrick_guest.errors import ConnectError
from firebrick_guest.users import Accounts, User

FALLBACK_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Settings:
    """Starts closed: until `is_ready` nothing but /health and the host's own routes is served."""

    def __init__(self, control_token: str, accounts: Accounts, path: str) -> None:
        self.control_token = control_token
        self.accounts = accounts
        self.search_path = path or FALLBACK_PATH
        self.told_at_ns = 0
        self.forget()

    def forget(self) -> None:
        """Be nobody's: closed, until the next /init."""
        self.is_ready = False
        self.env: dict[str, str] = {}
        self.access_token = ""
        self.default_user = "user"
        self.default_workdir = ""
        self.sandbox_id = ""
        self.template_id = ""
        self.metadata: dict[str, str] = {}

    def user(self, name: str | None) -> User:
        """The named user, or the default one. Raises ConnectError `unauthenticated`."""
        if name:
            return self.accounts.user(name)
        if found := self.accounts.find(self.default_user):
            return self.accounts.permitted(found)
        # An image without our usual account still has the one that we run as.
        return self.accounts.user(self.accounts.user_name(os.geteuid()))

    def workdir_of(self, user: User) -> str:
        return self.default_workdir or user.home

    def env_of(self, user: User, extra: dict[str, str]) -> dict[str, str]:
        """A command's whole environment: nothing of the agent's own is in it."""
        return {
            "PATH": self.search_path,
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            **self.global_env(),
            **extra,
        }

    def global_env(self) -> dict[str, str]:
        own = {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": self.sandbox_id, "E2B_TEMPLATE_ID": self.template_id}
        return {**own, **self.env}

    def checked_env(self, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if not name or "=" in name:
                raise ConnectError("invalid_argument", "a variable's name must not be empty or contain '='")
        return env
