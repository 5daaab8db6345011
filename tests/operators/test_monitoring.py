"""Alerts and dashboard ask for what a running service serves, in words that Prometheus reads."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from promql_parser import VectorSelector

from ops.site.structs import metrics
from tests.support.processes import ROOT
from tests.support.service import Served, sent

FOLDER = ROOT / "ops" / "monitoring"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
RULES = {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PROMTOOL = shutil.which("promtool")
# What others serve: Prometheus itself, blackbox_exporter, node_exporter.
OTHERS = {"up", "probe_success", "probe_ssl_earliest_cert_expiry", "ALERTS"}
OTHERS |= {"node_filesystem_avail_bytes", "node_filesystem_size_bytes"}
SCRAPED = {"job", "instance", "le"}  # Labels that Prometheus adds, and those of every histogram.
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count", "")}


def panels() -> Iterator[Any]:
    """The panels of the dashboard that show something."""
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def expressions() -> dict[str, str]:
    """Every expression by where it stands; Grafana's interval is replaced as it does."""
    found = {name: rule["expr"] for name, rule in RULES.items()}
    for panel in panels():
        for target in panel["targets"]:
            name = f"{panel['title']} {target['refId']}"
            assert name not in found, "two panels have one title"
            found[name] = target["expr"].replace("$__rate_interval", "5m")
    for annotation in DASHBOARD["annotations"]["list"]:
        found[annotation["name"]] = annotation["expr"]
    return found


every_expression = pytest.mark.parametrize("text", [pytest.param(e, id=n) for n, e in expressions().items()])


def selectors(text: str) -> list[VectorSelector]:
    """Every metric that an expression asks for. Raises ValueError if Prometheus could not read it."""
    found: list[VectorSelector] = []

    def visit(node: object) -> None:
        if isinstance(node, VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(text), visit)
    return found


def known_labels() -> dict[str, set[str]]:
    """The labels of every metric of ours, by the names that Prometheus stores."""
    found = {}
    for name, kind, labels in re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", metrics(), re.MULTILINE):
        for suffix in SUFFIXES.get(kind, ("",)):
            found[name + suffix] = set(re.findall(r"`(\w+)`", labels))
    return found


@pytest.fixture(scope="module")
async def served(service: Served) -> set[str]:
    """The names in the answer of a running service."""
    text = (await service.ask("GET", "/metrics")).raw.decode()
    types = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    return {name + suffix for name, kind in types for suffix in SUFFIXES.get(kind, ("",))}


async def test_what_waits_and_who_has_a_role_are_measured(service: Served) -> None:
    await service.register()
    await service.connect()
    answer = await service.act([sent(number) for number in range(3)])
    await service.get("/v1/conversations", at_least=answer.headers["Ledger-Position"])
    text = (await service.ask("GET", "/metrics")).raw.decode()
    waiting = (await service.get("/v1/status"))["deliveries"]
    assert waiting["pending"] >= 3
    for state in ("pending", "deferred", "parked"):
        assert f'chatledger_deliveries_waiting{{state="{state}"}} {waiting[state]}.0' in text
    for role, active in (("project", 1), ("relay", 0), ("deliver", 0)):
        assert f'chatledger_role_active{{role="{role}"}} {active}.0' in text


@every_expression
def test_prometheus_reads_it(text: str) -> None:
    assert selectors(text)


@every_expression
async def test_every_metric_it_names_is_served(text: str, served: set[str]) -> None:
    named = {str(selector.name) for selector in selectors(text)}
    assert named - OTHERS <= served


@every_expression
def test_every_label_it_names_is_one_of_the_metric(text: str) -> None:
    labels = known_labels()
    for selector in selectors(text):
        if selector.name in labels:
            named = {matcher.name for matcher in selector.matchers.matchers}
            assert named <= labels[selector.name] | SCRAPED


def test_a_name_that_is_gone_or_a_bracket_that_is_missing_is_found(served: set[str]) -> None:
    (gone,) = selectors("sum(rate(chatledger_gone_total[5m])) > 0")
    assert gone.name == "chatledger_gone_total"
    assert gone.name not in served
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        selectors("sum(rate(chatledger_gone_total[5m]) > 0")


def test_every_metric_of_ours_is_shown_or_alerted_of() -> None:
    asked = {str(selector.name) for text in expressions().values() for selector in selectors(text)}
    names = {
        re.sub("_(bucket|sum|count)$", "", name) if name not in asked else name for name in known_labels()
    }
    missing = {one for one in names if one not in asked and f"{one}_bucket" not in asked}
    assert missing == set()


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_how_urgent_it_is_and_what_to_do(name: str) -> None:
    rule = RULES[name]
    assert re.fullmatch(r"Chatledger[A-Z]\w+", name)
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description"}
    used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    kept = set(re.findall(r"by \(([\w, ]+)\)", rule["expr"].replace("(le, ", "(")))
    assert used <= {"instance", "mountpoint", *(one for group in kept for one in group.split(", "))}


def test_the_alerts_ask_for_jobs_that_are_scraped() -> None:
    scraped = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    jobs = {job["job_name"] for job in scraped["scrape_configs"]}
    asked = {
        str(matcher.value)
        for text in expressions().values()
        for selector in selectors(text)
        for matcher in selector.matchers.matchers
        if matcher.name == "job"
    }
    assert asked == jobs
    assert scraped["rule_files"] == ["alerts.yaml"]


def test_the_panels_lie_beside_each_other_and_have_names_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    sources = {panel["datasource"]["uid"] for panel in panels()}
    assert sources == {"${source}"}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
@pytest.mark.parametrize("command", ["check rules alerts.yaml", "test rules alerts.test.yaml"])
def test_promtool_finds_the_rules_right_and_what_they_say_of_samples(command: str, tmp_path: Path) -> None:
    assert PROMTOOL
    for path in FOLDER.glob("*.yaml"):
        shutil.copy(path, tmp_path)
    done = subprocess.run(
        [PROMTOOL, *command.split()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "SUCCESS" in done.stdout) == (0, True), done.stdout + done.stderr
