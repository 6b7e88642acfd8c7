"""Write down when API keys were last used."""

from firebrick.control.keys import KeyService

ROUND_S = 10.0


class NoteKeyUse:
    def __init__(self, keys: KeyService) -> None:
        self._keys = keys

    async def round(self) -> float:
        await self._keys.write_uses()
        return ROUND_S
