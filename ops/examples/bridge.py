"""A bridge whose messenger is this terminal: a line `CHAT TEXT` is what a customer writes."""

import json
import sqlite3
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from os import environ
from threading import Thread
from time import sleep, time_ns
from urllib.request import Request, urlopen

from standardwebhooks import Webhook, WebhookVerificationError

WEBHOOK = Webhook(environ["MESSENGER_SECRET"])
TAKEN = sqlite3.connect("bridge.db", isolation_level=None, check_same_thread=False)
TAKEN.execute("CREATE TABLE IF NOT EXISTS taken (name TEXT PRIMARY KEY, answer TEXT NOT NULL)")


def post(action: dict[str, object]) -> None:
    body, name, status = json.dumps(action | {"at": datetime.now(UTC).isoformat()}), str(time_ns()), 0
    while status not in (200, 400, 401, 404, 409, 413):  # All else is tried again: no answer, 429, 5xx.
        signature = WEBHOOK.sign(name, now := datetime.now(UTC), body)
        headers = {"webhook-id": name, "webhook-signature": signature}
        headers["webhook-timestamp"] = str(int(now.timestamp()))
        try:
            status = urlopen(Request(environ["ACTIONS_URL"], body.encode(), headers), timeout=10).status  # noqa: S310
        except OSError as error:
            status = getattr(error, "code", 0)
            sleep(1)
    print("posted" if status == 200 else f"refused: HTTP {status}", flush=True)


def take(name: str, call: dict[str, object]) -> str:
    for (answer,) in TAKEN.execute("SELECT answer FROM taken WHERE name = ?", [name]):
        return str(answer)  # A repeat is answered as the first time, and shown to nobody.
    answer = "{}"  # That is the answer to typing, reactions, and whatever else there may be.
    if call["type"] == "message.send":
        print(f"to {call['conversation_id']}: {call['message']}", flush=True)
        answer = json.dumps({"message_id": f"x-{call['id']}"})
    TAKEN.execute("INSERT INTO taken VALUES (?, ?)", [name, answer])
    return answer


class Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            status, answer = 200, take(self.headers["webhook-id"], WEBHOOK.verify(body, dict(self.headers)))
        except (WebhookVerificationError, ValueError):
            status, answer = 401, "{}"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer.encode())


Thread(target=HTTPServer(("127.0.0.1", int(environ["PORT"])), Hook).serve_forever, daemon=True).start()
for chat, _, text in (line.strip().partition(" ") for line in sys.stdin):
    message = {"message": {"type": "text", "text": text}, "sender": {"id": f"u-{chat}", "name": chat}}
    post({"type": "message.sent", "conversation_id": chat, "message_id": str(time_ns()), **message})
