"""`chatledger rebuild` and `chatledger views retry`: with the service running or stopped, reads go on."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.databases import reach_database
from app.config.settings import BadSettings, Settings
from app.views.rebuild import rebuild
from app.views.retry import UnknownView, retry


async def rebuild_views(settings: Settings, *, park: bool) -> None:
    """Build all views anew and switch, with progress on stderr. Raises RebuildRefused unless `park`."""
    async with reach_database(settings) as url:
        with _progress() as progress:
            task = progress.add_task("views", total=None)
            await rebuild(
                url, lambda done, total: progress.update(task, completed=done, total=total), park=park
            )


async def retry_views(settings: Settings, view: str | None) -> list[str]:
    """Take up what is parked for the views, or for one; returns lines for people, one for each that stays.

    Raises BadSettings for an unknown view, RebuildRefused.
    """
    async with reach_database(settings) as url:
        with _progress() as progress:
            task = progress.add_task("views", total=None)
            try:
                left = await retry(
                    url, view, lambda done, total: progress.update(task, completed=done, total=total)
                )
            except UnknownView as error:
                raise BadSettings(str(error)) from None
    return [f"{one.view}: position {one.position} stays parked: {one.error}" for one in left]


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
