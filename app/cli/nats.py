"""`chatledger nats`: where the stream LEDGER is, who may read it, and a program that does, ready to run."""

from urllib.parse import urlsplit

from app.config.settings import Settings
from app.servers.nats import ANALYST, Access, analyst_access
from app.servers.servers import NATS_PORT, ServerFailed

PASSWORD = "NATS_ANALYST_PASSWORD"  # noqa: S105 - the name of the variable in ops/nats-accounts.conf

# Comments and a program, so that the whole of it can be saved and run.
TEXT = """\
# The stream LEDGER: subscribe to ledger.>, and make pull consumers of your own. This user can do no more.
#   url       {url}
#   user      {user}
#   password  {password}
# The program prints every event of the stream and waits for more: pip install nats-py
import asyncio
{imports}
import nats
from nats.errors import TimeoutError


async def main():
    connection = await nats.connect({urls}, user="{user}", password={value})
    # The server remembers how far a consumer with a name is. Give yours another name.
    consumer = await connection.jetstream().pull_subscribe("ledger.>", durable="my-reports", stream="LEDGER")
    while True:
        try:
            messages = await consumer.fetch(100, timeout=30)
        except TimeoutError:
            continue
        for message in messages:
            print(message.metadata.sequence.stream, message.data.decode(), flush=True)
            await message.ack()


asyncio.run(main())
"""


def access(settings: Settings) -> Access:
    """Returns how an analyst gets in; the password is empty for servers of the operator, who knows it.

    Raises ServerFailed if the private server does not run.
    """
    if settings.nats_url:
        return Access(_bare(settings.nats_url), ANALYST, "")
    folder = settings.data / "nats"
    try:
        found = analyst_access(folder)
    except PermissionError as error:
        raise ServerFailed(
            f"{error.filename} is for the user who runs chatledger: ask as that user"
        ) from None
    if found is None:
        raise ServerFailed(
            f"no private NATS server runs in {folder}: start chatledger serve, or set CHATLEDGER_NATS_URL"
        )
    return found


def explain(given: Access) -> str:
    """Returns the access in words, and a program that uses it."""
    url, user, password = given
    urls = url.split(",")
    return TEXT.format(
        url=url,
        user=user,
        password=password or f"{PASSWORD} in the environment of your NATS servers",
        imports="" if password else "import os\n",
        urls=f'"{url}"' if len(urls) == 1 else "[{}]".format(", ".join(f'"{one}"' for one in urls)),
        value=f'"{password}"' if password else f'os.environ["{PASSWORD}"]',
    )


def _bare(urls: str) -> str:
    """Returns the addresses without their credentials, which are the service's."""
    places = [urlsplit(one.strip()) for one in urls.split(",")]
    return ",".join(f"{one.scheme}://{one.hostname}:{one.port or NATS_PORT}" for one in places)
