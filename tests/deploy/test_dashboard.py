"""The dashboard and the recording rules, with Debian's Prometheus and a gateway under load."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import yaml

from conftest import Certificate, StartGateway, StartProgram
from programs import GRAFANA, run, tool
from prometheus import RULES, Prometheus, expressions, panels, rules
from traffic import Everything, again_and_again


def test_rules_are_what_promtool_accepts_and_do_what_their_own_tests_say() -> None:
    directory = GRAFANA / "prometheus"
    promtool = tool("promtool")
    run(promtool, "check", "rules", *(directory / name for name in RULES))
    run(promtool, "check", "config", directory / "prometheus.yml")
    run(promtool, "test", "rules", directory / "tests.yml")


def test_dashboard_is_what_its_table_says() -> None:
    run(sys.executable, GRAFANA / "dashboard.py", "--check")


def test_every_panel_explains_itself_and_has_its_place() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert len(panel["description"]) > 30, panel["title"]
        place = panel["gridPos"]
        squares = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in squares) < 24, panel["title"]
        assert not squares & taken, panel["title"]
        taken |= squares


def test_provisioning_names_what_is_there() -> None:
    (source,) = yaml.safe_load(
        (GRAFANA / "provisioning/datasources/prometheus.yaml").read_text()
    )["datasources"]
    assert source["type"] == "prometheus"
    scrape_interval = yaml.safe_load((GRAFANA / "prometheus/prometheus.yml").read_text())["global"]
    assert source["jsonData"]["timeInterval"] == scrape_interval["scrape_interval"]
    (provider,) = yaml.safe_load(
        (GRAFANA / "provisioning/dashboards/wsgate.yaml").read_text()
    )["providers"]
    assert provider["type"] == "file"


def test_every_panel_and_recording_rule_has_data_of_a_gateway_under_load(
    certificate: Certificate,
    start_gateway: StartGateway,
    start_program: StartProgram,
    tmp_path: Path,
) -> None:
    gateway = start_gateway()
    # Has a certificate, whose expiry a panel shows.
    secure = start_gateway(tls_cert=certificate.certificate, tls_key=certificate.key)
    prometheus = Prometheus(start_program, tmp_path / "prometheus")
    for one in (gateway, secure):
        prometheus.watch(one.admin_address)
    wanted = expressions() | {rule["record"]: rule["record"] for rule in rules("recording.yml")}
    missing = set(wanted)

    def all_have_data() -> bool:
        for name in list(missing):
            if prometheus.query(wanted[name]):
                missing.remove(name)
        return not missing

    with contextlib.ExitStack() as stack, again_and_again(Everything(gateway, stack)):
        try:
            prometheus.until(all_have_data, "every expression has data")
        except AssertionError:
            raise AssertionError(f"no data for {sorted(missing)}") from None
