"""What happens when an account's administrator installs an integration by its widget, and takes it away.

"Install" calls the redirect URL from Kommo's own servers: "via a Webhook, that will be sent to Redirect URI
after installing the widget" (https://www.amocrm.com/developers/content/oauth/public-integrations/).
"""

import hmac
import time

import aiohttp

from ops.sandbox.config import CrmAccount, OAuthClient
from ops.sandbox.errors import Impossible
from ops.sandbox.pages.consent import redirect_of, with_query
from ops.sandbox.state.crm import Archive
from ops.sandbox.widget.archive import manifest_of, unpacked
from ops.sandbox.world import World

CALL_SECONDS = 10.0


def upload(world: World, client: OAuthClient, content: bytes) -> Archive:
    """Take the archive as the integration's widget, in place of an earlier one. Raises Refused."""
    return world.crm_state.archives.save(
        Archive(id=client.id, files=unpacked(content), uploaded_at=int(time.time()))
    )


def archive_of(world: World, client: OAuthClient) -> Archive:
    """The integration's widget; raises Impossible (404)."""
    found = world.crm_state.archives.get(client.id)
    if found is None:
        raise Impossible(404, "the integration has no widget: upload its archive first")
    return found


def code_of(widget: Archive) -> str:
    """The widget's code, which names it in Kommo's pages."""
    return f"w{widget.id.replace('-', '')[:12]}"


def version_of(widget: Archive) -> str:
    """The widget's version."""
    return str(manifest_of(widget.files)["widget"]["version"])


async def install(
    world: World, account: CrmAccount, client: OAuthClient, referer: str, *, deliver: bool = True
) -> dict[str, object]:
    """The account consents, and the redirect URL is told; `referer` is the account's host."""
    where = redirect_of(client, "")
    told = {
        "code": world.consent.code(client, account, where),
        "referer": referer,
        "client_id": client.id,
        "from_widget": "1",
    }
    url = with_query(where, told)
    return {**told, "url": url} | (await visit(world, url) if deliver else {})


async def uninstall(world: World, account: CrmAccount, client: OAuthClient, url: str) -> dict[str, object]:
    """Tokens end, channels are disconnected, and the integration is told at `url`, signed."""
    world.consent.disable(account, client)
    channels = {one.id for one in world.config.channels if one.client in ("", client.id)}
    told: dict[str, object] = {"disconnected": world.kommo.switch_off(account.amojo_id, channels)}
    if not url:
        return told
    text = f"{client.id}|{account.id}"
    signature = hmac.digest(client.secret.encode(), text.encode(), "sha256").hex()
    given = {"account_id": str(account.id), "client_uuid": client.id, "signature": signature}
    url = with_query(url, given)
    return told | {"url": url} | await visit(world, url)


async def visit(world: World, url: str) -> dict[str, object]:
    """The answer of the integration's address: `status`, or `error`."""
    timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
    try:
        async with world.session.get(url, timeout=timeout, allow_redirects=False) as answered:
            await answered.read()
            return {"status": answered.status}
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return {"status": None, "error": type(error).__name__}
