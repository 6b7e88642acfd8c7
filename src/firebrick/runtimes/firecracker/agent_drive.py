"""The guest agent's directory as a drive: packed once for each version, shared by all machines that have it."""

import asyncio
import hashlib
from pathlib import Path

from firebrick.linux.erofs import mkfs_command
from firebrick.linux.process import CommandFailed, run
from firebrick.runtimes.base import RuntimeFailed


class AgentDrives:
    """Args: directory: ours alone; made when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._one_packer = asyncio.Lock()

    async def drive(self, agent_dir: Path) -> Path:
        """The drive of that version. Raises RuntimeFailed."""
        async with self._one_packer:
            try:
                image = await asyncio.to_thread(self._path, agent_dir)
                if not image.exists():
                    draft = image.with_suffix(".new")
                    draft.unlink(missing_ok=True)
                    await run(mkfs_command(draft, agent_dir, "--all-root"))
                    draft.chmod(0o644)
                    draft.rename(image)
                    # One that a machine still has stays with it, without a name.
                    for other in self._directory.iterdir():
                        if other != image:
                            other.unlink()
            except (OSError, CommandFailed) as exc:
                raise RuntimeFailed("The guest agent could not be packed into a drive.", detail=str(exc)) from exc
            return image

    def _path(self, agent_dir: Path) -> Path:
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        found = agent_dir.stat()
        # A new version is a new directory, put in place by rename.
        key = hashlib.sha256(f"{agent_dir} {found.st_ino} {found.st_mtime_ns}".encode()).hexdigest()[:16]
        return self._directory / f"{key}.erofs"
