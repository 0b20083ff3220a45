"""Debian's Prometheus with the files of grafana/, with seconds for their minutes.

- `Prometheus`: one that runs, the gateways that it asks, and what it answers.
- `panels` and `alerts`: what the files say.
"""

from __future__ import annotations

import json
import math
import re
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import yaml

from conftest import StartProgram
from gateway import Address, ask
from programs import GRAFANA, free_port, tool

RULES = ("recording.yml", "alerts.yml")
# Long enough for several scrapes on a busy machine, as the files' 5m are for 15 s.
WINDOW = "6s"
SCRAPE_INTERVAL = "500ms"


def hastened(rules: str) -> str:
    """Rules with seconds for minutes, and without waiting before an alert fires."""
    rules = re.sub(r"^( +)for: \w+$", r"\1for: 0s", rules, flags=re.MULTILINE)
    # The shortest has to hold several scrapes, too.
    rules = rules.replace("[2m]", f"[{WINDOW}]").replace("[5m]", f"[{WINDOW}]")
    return rules.replace("[15m]", "[15s]").replace("[30m]", "[30s]")


class Prometheus:
    def __init__(
        self,
        start_program: StartProgram,
        directory: Path,
        scrape_interval: str = SCRAPE_INTERVAL,
    ) -> None:
        directory.mkdir()
        for name in RULES:
            text = (GRAFANA / "prometheus" / name).read_text()
            (directory / name).write_text(hastened(text))
        config = yaml.safe_load((GRAFANA / "prometheus/prometheus.yml").read_text())
        config["global"] = dict.fromkeys(config["global"], scrape_interval)
        (job,) = config["scrape_configs"]
        del job["static_configs"]
        self._targets = directory / "targets.json"
        job["file_sd_configs"] = [{"files": [str(self._targets)], "refresh_interval": "1s"}]
        file = directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        self._addresses: list[str] = []
        self._write_targets()
        self.address: Address = ("127.0.0.1", free_port())
        self._program = start_program(
            tool("prometheus"),
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.address[1]}",
            "--log.level=warn",
        )
        self._program.until(self._is_ready, "Prometheus is ready")

    def _is_ready(self) -> bool:
        try:
            return ask(self.address, "GET", "/-/ready").status == 200
        except OSError:
            return False

    def _write_targets(self) -> None:
        whole = self._targets.with_suffix(".new")
        whole.write_text(json.dumps([{"targets": self._addresses}]))
        whole.rename(self._targets)

    def watch(self, admin_address: Address) -> str:
        """Asks this gateway from now on; its label `instance`."""
        instance = f"{admin_address[0]}:{admin_address[1]}"
        if instance not in self._addresses:
            self._addresses.append(instance)
            self._write_targets()
        return instance

    @property
    def instances(self) -> list[str]:
        return list(self._addresses)

    def forget(self, instance: str) -> None:
        self._addresses.remove(instance)
        self._write_targets()

    def _api(self, path: str, **query: object) -> list[dict] | dict:
        answer = ask(self.address, "GET", f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
        body = answer.json()
        assert body["status"] == "success", (path, query, body)
        return body["data"]

    def query(self, expression: str) -> list[float]:
        """The values of all series right now, without those that are no number."""
        found = self._api("query", query=expression)["result"]
        values = [float(series["value"][1]) for series in found]
        return [value for value in values if not math.isnan(value)]

    def query_range(self, expression: str, seconds: float, step: float) -> list[dict]:
        """All series of the last `seconds`: "metric", and "values" with pairs of time and text."""
        now = time.time()
        window = {"start": now - seconds, "end": now, "step": step}
        return self._api("query_range", query=expression, **window)["result"]

    def firing(self) -> set[tuple[str, str]]:
        """Pairs of the name of an alert and the instance for which it fires."""
        return {
            (alert["labels"]["alertname"], alert["labels"].get("instance", ""))
            for alert in self._api("alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def until(self, condition: Callable[[], bool], what: str, within: float = 40) -> None:
        self._program.until(condition, what, within)


def rules(file: str) -> list[dict]:
    groups = yaml.safe_load((GRAFANA / "prometheus" / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict]:
    dashboard = json.loads((GRAFANA / "wsgate.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """By panel and query, as Grafana would ask with all gateways chosen."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", WINDOW)
        .replace("$instance", ".*")
        for panel in panels()
        for target in panel["targets"]
    }
