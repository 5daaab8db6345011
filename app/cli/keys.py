"""`chatledger keys`: the master key is rotated, with the service running or stopped."""

from app.access.rotation import Resealed, reseal, rotation
from app.cli.databases import reach_database
from app.config import rotation as files
from app.config.settings import MASTER_SETTING, BadSettings, Settings, load_masters
from app.vault import Vault, kid_of


async def rotate_master(settings: Settings) -> list[str]:
    """Rotate the master key; returns lines for people. Raises BadSettings, RotationRuns, NotRotated.

    A key in the data folder is replaced here. Keys in the settings are the operator's to replace, so that
    everything is only sealed again with the first of them.
    """
    async with reach_database(settings) as url, rotation(url) as db:
        in_files = settings.master_key is None
        if in_files:
            files.begin(settings.data)
        try:
            masters = load_masters(settings)
        except FileNotFoundError as error:
            raise BadSettings(f"there is no master key to rotate: {error}") from None
        found = await reseal(db, Vault(*masters))
        lines = [_summary(found, kid_of(masters[0]))]
        if in_files and (retired := files.end(settings.data)):
            lines.append(
                f"the old key is kept as {retired}: delete it once no backup older than now is needed"
            )
        elif len(masters) > 1:
            lines.append(f"remove {MASTER_SETTING}_OLD and restart every process")
        elif not in_files and not found.changed:
            lines.append(
                f"to replace the key: set {MASTER_SETTING} to a new one (openssl rand -base64 32) and "
                f"{MASTER_SETTING}_OLD to the present one, restart every process, and run this again"
            )
        return lines


def _summary(found: Resealed, kid: str) -> str:
    values = "value" if found.total == 1 else "values"
    return f"{found.total} sealed {values}, {found.changed} of them sealed anew, all with master key {kid}"
