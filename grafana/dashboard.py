#!/usr/bin/env python3
"""Writes wsgate.json, the dashboard for Grafana 9 or newer, from the table below.

    grafana/dashboard.py            writes it
    grafana/dashboard.py --check    fails where it is not what the table says

A dashboard is a long file of positions and numbers; what matters of a panel is its question, its
expressions and its unit, and these are here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

OUT = Path(__file__).with_name("wsgate.json")

# What is behind $instance: all gateways, or those that were chosen at the top.
HERE = 'instance=~"$instance"'


@dataclass(frozen=True)
class Panel:
    title: str
    # For somebody who sees it for the first time: what it is, and when to worry.
    description: str
    # Pairs of an expression and what its series are called.
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    # For one number: from which value on it is yellow, and from which red.
    yellow: float | None = None
    red: float | None = None
    maximum: float | None = None


def per_second(metric: str, labels: str = "", by: str = "") -> str:
    grouping = f"sum by ({by}) " if by else "sum"
    selector = ", ".join(part for part in (HERE, labels) if part)
    return f"{grouping}(rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(share: float, metric: str) -> str:
    return f"histogram_quantile({share}, {per_second(metric + '_bucket', by='le')})"


def quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    return (
        (quantile(0.5, metric), "half of them take less"),
        (quantile(0.99, metric), "99 of 100 take less"),
    )


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Is it healthy?",
        (
            Panel(
                "Gateways up",
                "How many gateways answer. Should be as many as you have started.",
                ((f'sum(up{{job="wsgate", {HERE}}})', "up"),),
                kind="stat",
                width=4,
            ),
            Panel(
                "Draining",
                "Gateways that are about to stop and send their clients elsewhere. 0 unless somebody"
                " deploys.",
                ((f"sum(wsgate_draining{{{HERE}}})", "draining"),),
                kind="stat",
                width=4,
                yellow=1,
            ),
            Panel(
                "Alerts",
                "Alerts of grafana/prometheus/alerts.yml that fire now; docs/OPERATING.md says what to do"
                " about each.",
                (('sum(ALERTS{alertname=~"Wsgate.*", alertstate="firing"}) or vector(0)', "firing"),),
                kind="stat",
                width=4,
                red=1,
            ),
            Panel(
                "Bugs",
                "Connections that were ended with 1011 for an error of the gateway itself. Always worth a"
                " report.",
                ((f"sum(wsgate_panics_total{{{HERE}}})", "panics"),),
                kind="stat",
                width=4,
                red=1,
            ),
            Panel(
                "Certificate",
                "Time until the first TLS certificate in use expires. Nothing where TLS ends elsewhere.",
                (
                    (
                        f"min(wsgate_tls_certificate_expiry_timestamp_seconds{{{HERE}}}) - time()",
                        "left",
                    ),
                ),
                unit="s",
                kind="stat",
                width=4,
            ),
            Panel(
                "Settings",
                "1 where the settings are those of the file; 0 where the file was wrong at the last"
                " reload.",
                ((f"min(wsgate_config_last_reload_successful{{{HERE}}})", "as in the file"),),
                kind="stat",
                width=4,
            ),
        ),
    ),
    (
        "Who is connected?",
        (
            Panel(
                "Connections",
                "Open WebSockets of each gateway. A step down on one and up on another is a drain; a step"
                " down on all is an outage.",
                ((f"sum by (instance) (wsgate_connections{{{HERE}}})", "{{instance}}"),),
                stacked=True,
            ),
            Panel(
                "Room",
                "Open WebSockets as a share of those that each gateway may have. At 100% the next clients"
                " get 503.",
                (
                    (
                        f"sum by (instance) (wsgate_connections{{{HERE}}})"
                        f" / sum by (instance) (wsgate_max_connections{{{HERE}}})",
                        "{{instance}}",
                    ),
                ),
                unit="percentunit",
            ),
            Panel(
                "Coming and going",
                "Sockets accepted and connections ended, a second. A steep rise of both is a reconnect"
                " storm.",
                (
                    (per_second("wsgate_connections_accepted_total"), "accepted"),
                    (per_second("wsgate_connections_closed_total"), "ended"),
                ),
                unit="cps",
            ),
            Panel(
                "How they end",
                "Connections ended a second, by close code and by who began: 1000 and 1001 are goodbyes,"
                " 1006 is no goodbye at all, 1008 too slow a reader, 1009 too large a message.",
                (
                    (
                        per_second("wsgate_connections_closed_total", by="code, initiator") + " > 0",
                        "{{code}} {{initiator}}",
                    ),
                ),
                unit="cps",
                stacked=True,
            ),
            Panel(
                "Channels and subscriptions",
                "Channels that somebody hears, and how many hear them in all.",
                (
                    (f"sum(wsgate_channels{{{HERE}}})", "channels"),
                    (f"sum(wsgate_subscriptions{{{HERE}}})", "subscriptions"),
                ),
            ),
            Panel(
                "Compression",
                "Connections that negotiated permessage-deflate, and all of them.",
                (
                    (
                        f"sum by (mode) (wsgate_compressed_connections{{{HERE}}})",
                        "{{mode}}",
                    ),
                    (f"sum(wsgate_connections{{{HERE}}})", "all"),
                ),
            ),
        ),
    ),
    (
        "What flows?",
        (
            Panel(
                "Messages from clients",
                "What clients send, a second, as text or as binary.",
                ((per_second("wsgate_messages_received_total", by="kind"), "{{kind}}"),),
                unit="mps",
                stacked=True,
            ),
            Panel(
                "Messages to clients",
                "What clients get, a second: echoes, and each publication once for each that hears it.",
                ((per_second("wsgate_messages_sent_total", by="kind"), "{{kind}}"),),
                unit="mps",
                stacked=True,
            ),
            Panel(
                "Bytes",
                "What goes over the wire, a second, as WebSocket frames.",
                (
                    (per_second("wsgate_received_bytes_total"), "in"),
                    (per_second("wsgate_sent_bytes_total"), "out"),
                ),
                unit="Bps",
            ),
            Panel(
                "Publications",
                "Messages published on channels a second, by who published them: clients or the HTTP API.",
                ((per_second("wsgate_publications_total", by="source"), "{{source}}"),),
                unit="mps",
                width=12,
                stacked=True,
            ),
            Panel(
                "Fan-out",
                "How many clients hear one publication, on average. This is what the gateway multiplies"
                " your traffic by.",
                (
                    (
                        per_second("wsgate_deliveries_total", by="instance")
                        + " / ("
                        + per_second("wsgate_publications_total", by="instance")
                        + " > 0)",
                        "{{instance}}",
                    ),
                ),
                width=12,
            ),
        ),
    ),
    (
        "What is slow?",
        (
            Panel(
                "Delivery lag",
                "From a publication's arrival to the last write for those who hear it. It rises before"
                " anything breaks.",
                quantiles("wsgate_delivery_lag_seconds"),
                unit="s",
            ),
            Panel(
                "Opening a connection",
                "From accepting a socket to the end of its handshake. High where shards are busy, or"
                " clients are far away.",
                quantiles("wsgate_handshake_duration_seconds"),
                unit="s",
            ),
            Panel(
                "Waiting to be sent",
                "Bytes in outbound queues, since clients read more slowly than messages come. Near 0 is"
                " normal.",
                ((f"sum by (instance) (wsgate_outbound_queue_bytes{{{HERE}}})", "{{instance}}"),),
                unit="bytes",
            ),
        ),
    ),
    (
        "What was refused?",
        (
            Panel(
                "Turned away",
                "Sockets and requests that became no connection, a second, by reason. full and overload:"
                " add capacity. origin: a page is missing in allowed_origins.",
                (
                    (
                        per_second("wsgate_connections_rejected_total", by="reason") + " > 0",
                        "{{reason}}",
                    ),
                ),
                unit="cps",
                width=6,
                stacked=True,
            ),
            Panel(
                "Slow consumers",
                "Times a second that a client's queue was full, by what was done; and messages dropped for"
                " it.",
                (
                    (per_second("wsgate_slow_consumers_total", by="action"), "{{action}}"),
                    (per_second("wsgate_dropped_messages_total"), "messages dropped"),
                ),
                unit="cps",
                width=6,
            ),
            Panel(
                "Sent too much",
                "Times a second that a client sent more messages or bytes than max_messages_per_second and"
                " max_bytes_per_second allow, and what was done. Nothing where they are not set.",
                (
                    (
                        per_second("wsgate_rate_limited_total", by="limit, action"),
                        "{{limit}} {{action}}",
                    ),
                ),
                unit="cps",
                width=6,
            ),
            Panel(
                "Broken rules",
                "Connections ended a second for breaking the protocol, by the rule. A client with a bug, or"
                " somebody who tries things.",
                (
                    (
                        per_second("wsgate_protocol_errors_total", by="kind") + " > 0",
                        "{{kind}}",
                    ),
                ),
                unit="cps",
                width=6,
                stacked=True,
            ),
        ),
    ),
    (
        "Is a shard hot?",
        (
            Panel(
                "Busy",
                "Share of the time that each shard (one thread, one core) works. All near 1: add cores or"
                " gateways. One near 1: a few connections make most of the traffic.",
                (
                    (
                        f"wsgate_shard_busy_ratio{{{HERE}}}",
                        "{{instance}} {{shard}}",
                    ),
                ),
                unit="percentunit",
                maximum=1,
            ),
            Panel(
                "Connections of each shard",
                "New ones go to the shard with the fewest, so these are close together.",
                (
                    (f"wsgate_connections{{{HERE}}}", "{{instance}} {{shard}}"),
                ),
            ),
            Panel(
                "Mailboxes full",
                "Times a second that a shard could not take more from another one, so that publishers were"
                " made to wait. 0 is normal.",
                ((per_second("wsgate_mailbox_full_total", by="instance"), "{{instance}}"),),
                unit="cps",
            ),
        ),
    ),
    (
        "What does the process use?",
        (
            Panel(
                "CPU",
                "Cores in use, of user and system together.",
                ((per_second("process_cpu_seconds_total", 'job="wsgate"', "instance"), "{{instance}}"),),
                unit="short",
            ),
            Panel(
                "Memory",
                "Resident memory of the process. What the kernel holds for sockets comes on top.",
                (
                    (
                        f'process_resident_memory_bytes{{job="wsgate", {HERE}}}',
                        "{{instance}}",
                    ),
                ),
                unit="bytes",
            ),
            Panel(
                "File descriptors",
                "Share of the limit of open files that is in use. Each connection takes one.",
                (
                    (
                        f'process_open_fds{{job="wsgate", {HERE}}}'
                        f' / process_max_fds{{job="wsgate", {HERE}}}',
                        "{{instance}}",
                    ),
                ),
                unit="percentunit",
                maximum=1,
            ),
            Panel(
                "Saved by compression",
                "Bytes that frames lost by being deflated, of those that were to be. A publication counts"
                " once, however many get it.",
                (
                    (
                        "1 - "
                        + per_second("wsgate_deflate_output_bytes_total")
                        + " / ("
                        + per_second("wsgate_deflate_input_bytes_total")
                        + " > 0)",
                        "saved",
                    ),
                ),
                unit="percentunit",
                width=12,
                maximum=1,
            ),
            Panel(
                "Memory for each connection",
                "The process's memory divided by its connections. Says something from some thousand"
                " connections on.",
                (
                    (
                        f"wsgate:resident_memory_bytes:per_connection{{{HERE}}}",
                        "{{instance}}",
                    ),
                ),
                unit="bytes",
                width=12,
            ),
        ),
    ),
)

SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panel_json(panel: Panel, id: int, x: int, y: int) -> dict:
    steps: list[dict] = [{"color": "green", "value": None}]
    if panel.yellow is not None:
        steps.append({"color": "yellow", "value": panel.yellow})
    if panel.red is not None:
        steps.append({"color": "red", "value": panel.red})
    defaults: dict = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "stat":
        del defaults["min"]
        options: dict = {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "colorMode": "value",
            "graphMode": "none",
        }
    else:
        defaults["custom"] = {
            "fillOpacity": 20 if panel.stacked else 5,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "showPoints": "never",
        }
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": id,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": 4 if panel.kind == "stat" else 8},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": "ABC"[index],
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": panel.kind == "stat",
                "range": panel.kind != "stat",
            }
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


def dashboard() -> dict:
    panels: list[dict] = []
    y = 0
    for title, row in ROWS:
        header = {"type": "row", "title": title, "collapsed": False, "panels": []}
        panels.append(header | {"id": len(panels) + 1, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y, x, height = y + 1, 0, 0
        for panel in row:
            if x + panel.width > 24:
                x, y = 0, y + height
            panels.append(panel_json(panel, len(panels) + 1, x, y))
            x, height = x + panel.width, panels[-1]["gridPos"]["h"]
        y += height
    return {
        "uid": "wsgate",
        "title": "wsgate",
        "description": "A WebSocket gateway, from its health down to what its process uses.",
        "tags": ["wsgate", "websocket"],
        "schemaVersion": 38,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "links": [],
        "annotations": {"list": []},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                },
                {
                    "name": "instance",
                    "label": "Gateway",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": 'label_values(up{job="wsgate"}, instance)',
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def main() -> int:
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        if OUT.read_text() != text:
            print(f"{OUT} is not what dashboard.py says; run grafana/dashboard.py", file=sys.stderr)
            return 1
        return 0
    OUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
