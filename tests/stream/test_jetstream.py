"""The private methods of nats-py that we use are there, with the signatures that we count on."""

import ast
import importlib.metadata
import inspect
import tomllib
from pathlib import Path

import pytest
from nats.aio.client import Client

from app.servers.nats import PrivateNats
from app.stream import jetstream
from app.stream.client import NATS_PY_ATTRIBUTES, NATS_PY_PRIVATE, NatsClient

OURS = {"_watchers", "_said"}
SIGNATURES = {
    "_send_command": {"cmd": inspect.Parameter.empty, "priority": False},
    "_flush_pending": {"force_flush": False},
    "_process_headers": {"headers": inspect.Parameter.empty},
    "_process_info": {"info": inspect.Parameter.empty, "initial_connection": False},
    "_process_err": {"err_msg": inspect.Parameter.empty},
    "_process_op_err": {"e": inspect.Parameter.empty},
}


@pytest.mark.parametrize("name", NATS_PY_PRIVATE)
def test_a_private_method_has_the_signature_that_we_count_on(name: str) -> None:
    method = getattr(Client, name)
    parameters = inspect.signature(method).parameters
    defaults = {each.name: each.default for each in parameters.values() if each.name != "self"}
    assert (inspect.iscoroutinefunction(method), defaults) == (True, SIGNATURES[name])


@pytest.mark.parametrize("name", NATS_PY_ATTRIBUTES)
def test_a_private_attribute_is_there(name: str) -> None:
    assert hasattr(Client(), name)


def test_no_other_private_name_of_nats_py_is_used() -> None:
    (ours,) = ast.parse(inspect.getsource(NatsClient)).body
    private = {
        node.attr if isinstance(node, ast.Attribute) else node.name
        for node in ast.walk(ours)
        if isinstance(node, ast.Attribute | ast.AsyncFunctionDef)
    }
    assert {name for name in private if name[0] == "_" and name[:2] != "__"} - OURS == {
        *NATS_PY_PRIVATE,
        *NATS_PY_ATTRIBUTES,
    }


def test_nats_py_is_pinned_to_the_version_that_is_tested() -> None:
    project = Path(jetstream.__file__).parents[2] / "pyproject.toml"
    dependencies = tomllib.loads(project.read_text())["project"]["dependencies"]
    assert f"nats-py=={importlib.metadata.version('nats-py')}" in dependencies


async def test_nats_py_calls_the_method_that_leaves_headers_unparsed(nats_own: PrivateNats) -> None:
    """Headers of a message stay unread; a status, which has no other bearer, is read."""
    connection = await jetstream.connect(nats_own.url, name="test")
    heard = await connection.subscribe("heard")
    await connection.publish("heard", b"body", headers={"Nats-Msg-Id": "1"})
    message = await heard.next_msg(timeout=5)
    assert (message.data, message.headers) == (b"body", None)
    inbox = connection.new_inbox()
    answers = await connection.subscribe(inbox)
    await connection.write(f"PUB nobody.listens {inbox} 0\r\n\r\n".encode())
    status = await answers.next_msg(timeout=5)
    assert (status.headers or {}).get("Status") == "503"
    await connection.close()
