"""The manifests of ops/kubernetes fit Kubernetes' schemas, each other, and the program."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import kubernetes_validate
import promql_parser
import pytest
import yaml

from app.config.settings import load_settings
from app.metrics import WAITING
from tests.support.databases import NewDatabase
from tests.support.ids import ADMIN_KEY, MASTER_KEY
from tests.support.processes import ROOT, Process, run_command, started
from tests.support.system import broker

FOLDER = ROOT / "ops" / "kubernetes"
KUBECTL = shutil.which("kubectl")
VERSIONS = ("1.29", "1.33", "1.37")  # The oldest with all fields that are used, and the newest that is known.
Json = dict[str, Any]


def gathered(folder: Path) -> Iterator[Json]:
    """The resources that a kustomization brings together, as they are written."""
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = folder / name
        if path.is_dir():
            yield from gathered(path)
        else:
            yield from yaml.safe_load_all(path.read_text())


WRITTEN = [*gathered(FOLDER / "overlays/example"), *gathered(FOLDER / "migrate")]


def named(one: Json) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def of(kind: str) -> dict[str, Any]:
    """The resources of a kind by name."""
    return {one["metadata"]["name"]: one for one in WRITTEN if one["kind"] == kind}


PODS = {name: one["spec"]["template"] for kind in ("Deployment", "Job") for name, one in of(kind).items()}
DEPLOYMENTS = of("Deployment")
every_version = pytest.mark.parametrize("version", VERSIONS)
every_resource = pytest.mark.parametrize("one", WRITTEN, ids=named)
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
every_deployment = pytest.mark.parametrize("one", DEPLOYMENTS.values(), ids=DEPLOYMENTS)


@every_version
@every_resource
def test_a_resource_fits_the_schema_of_kubernetes(one: Json, version: str) -> None:
    kubernetes_validate.validate(one, version, strict=True)


def test_the_schema_refuses_a_field_that_kubernetes_does_not_know() -> None:
    wrong = yaml.safe_load(yaml.safe_dump(DEPLOYMENTS["chatledger-web"]))
    wrong["spec"]["template"]["spec"]["terminationGraceSeconds"] = 30
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["overlays/example", "migrate"])
def test_kustomize_makes_of_it_what_kubernetes_takes(folder: str) -> None:
    assert KUBECTL
    done = subprocess.run(
        [KUBECTL, "kustomize", FOLDER / folder], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    made = list(yaml.safe_load_all(done.stdout))
    assert sorted(map(named, made)) == sorted(map(named, gathered(FOLDER / folder)))
    for one in made:
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)
        assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "chatledger"
        if folder.startswith("overlays"):
            assert one["metadata"]["namespace"] == "chatledger"
    images = set(re.findall(r"image: (\S+)", done.stdout))
    assert images == ({"registry.example.com/chatledger:0.3.0"} if "overlays" in folder else {"chatledger"})


@every_pod
def test_a_pod_is_confined(pod: Json) -> None:
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    image = (ROOT / "ops/Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+:\d+)$", image, re.MULTILINE)
    given = pod["spec"]["securityContext"]
    assert f"{given['runAsUser']}:{given['runAsGroup']}" == user
    assert given["runAsNonRoot"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]


def test_secrets_are_only_referred_to() -> None:
    assert not of("Secret")
    refers = {
        name: [one["secret"]["secretName"] for one in pod["spec"]["volumes"] if "secret" in one]
        for name, pod in PODS.items()
    }
    assert refers.pop("chatledger-migrate") == ["chatledger-owner"]
    assert refers == {name: ["chatledger"] for name in DEPLOYMENTS}
    for path in FOLDER.rglob("*.yaml"):
        assert not re.search(r"value: .*(?:KEY|://|PASSWORD)", path.read_text())


@every_deployment
def test_selectors_meet_their_pods(one: Json) -> None:
    labels = one["spec"]["template"]["metadata"]["labels"]
    assert one["spec"]["selector"]["matchLabels"] == labels
    name = one["metadata"]["name"]
    budget = of("PodDisruptionBudget")[name]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    for spread in one["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == labels
    scaler = of("HorizontalPodAutoscaler").get(name)
    assert ("replicas" in one["spec"]) != bool(scaler)
    assert scaler is None or scaler["spec"]["scaleTargetRef"]["name"] == name


def test_only_the_web_is_called_from_outside() -> None:
    (service,) = of("Service").values()
    web = DEPLOYMENTS["chatledger-web"]["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"] == web
    assert of("NetworkPolicy")["chatledger-web"]["spec"]["podSelector"]["matchLabels"] == web


def test_every_role_has_a_process_and_each_answers_its_probes() -> None:
    """Without the role web a process has no HTTP, and so neither probes nor metrics."""
    roles: set[str] = set()
    for one in DEPLOYMENTS.values():
        (container,) = one["spec"]["template"]["spec"]["containers"]
        ((name, value),) = [(given["name"], given["value"]) for given in container["env"]]
        urls = {"CHATLEDGER_DATABASE_URL": "postgresql://db", "CHATLEDGER_NATS_URL": "nats://nats"}
        found = load_settings(environment={name: value, "HOME": "/x", **urls}).roles
        assert "web" in found
        roles |= found
    assert roles == {"web", "relay", "project", "deliver"}


async def test_the_arguments_and_probes_are_those_of_the_program(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    database = await new_database()
    (job,) = PODS["chatledger-migrate"]["spec"]["containers"]
    (container,) = PODS["chatledger-ledger"]["spec"]["containers"]
    words = {"/etc/chatledger": str(tmp_path)}
    text = f'CHATLEDGER_DATABASE_URL = "{database}"\n'
    (tmp_path / "owner.toml").write_text(text)
    given = {"CHATLEDGER_DATA": str(tmp_path / "data"), "CHATLEDGER_PORT": "0"}
    done = await run_command(*(replaced(one, words) for one in job["args"]), **given)
    assert (done.code, done.err) == (0, "")
    async with broker() as nats, aiohttp.ClientSession() as client:
        text += f'CHATLEDGER_NATS_URL = "{nats.url}"\nCHATLEDGER_ADMIN_KEY = "{ADMIN_KEY}"\n'
        (tmp_path / "chatledger.toml").write_text(text + f'CHATLEDGER_MASTER_KEY = "{MASTER_KEY}"\n')
        given |= {one["name"]: one["value"] for one in container["env"]}
        process = Process(tmp_path, "app", *(replaced(one, words) for one in container["args"]), **given)
        async with started(process) as url:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                get = container[probe]["httpGet"]
                assert get["port"] == container["ports"][0]["name"]
                async with client.get(url + get["path"]) as answer:
                    assert answer.status == 200
            assert await process.end() == 0


def replaced(word: str, words: dict[str, str]) -> str:
    """A word of the arguments, with folders of the test in place of the pod's."""
    for folder, own in words.items():
        word = word.replace(folder, own)
    return word


def test_the_autoscaler_asks_for_what_the_adapter_gives() -> None:
    (metric,) = of("HorizontalPodAutoscaler")["chatledger-deliver"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["external"]
    assert metric["external"]["metric"]["name"] == rule["name"]["as"]
    (family,) = WAITING.describe()
    selector = promql_parser.parse(rule["seriesQuery"])
    assert isinstance(selector, promql_parser.VectorSelector)
    assert (selector.name, selector.matchers.matchers[0].name) == (family.name, "state")
    query = rule["metricsQuery"].replace("<<.Series>>", str(selector.name)).replace("<<.LabelMatchers>>,", "")
    assert promql_parser.parse(query).prettify() == f'max({family.name}{{state="pending"}})'
