#!/usr/bin/env python3
"""Draws docs/dashboard.png: the panels of grafana/wsgate.json with what Prometheus has of two gateways
under load, one of which is drained and started again.

    DEPLOY_TOOLS=.test/deploy .test/deploy/python/bin/pip install matplotlib
    DEPLOY_TOOLS=.test/deploy .test/deploy/python/bin/python tests/deploy/picture.py

It needs the release build of the gateway and of loadtest (GATEWAY_BINARY, LOADTEST_BINARY), and takes two
minutes. This is no Grafana: only place, title, unit and series of each panel are what Grafana shows.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "clients/python"))

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from balancers import Pair
from gateway import ROOT, Gateway
from programs import Program
from prometheus import Prometheus
from raw_client import RawClient
from traffic import Everything, again_and_again

OUT = ROOT / "docs/dashboard.png"
SECONDS = 120
# A scrape may be late on a busy machine without a gap in the picture; the window has several of them.
SCRAPE_INTERVAL, WINDOW = "2s", "16s"
# Of the columns and rows of Grafana's grid, in inches.
COLUMN, ROW = 0.54, 0.235
COLOURS = ("#3274d9", "#56a64b", "#e0752d", "#8f3bb8", "#e02f44", "#1f9e9e", "#c4a000", "#888888")


def loadtest() -> Path:
    return Path(os.environ.get("LOADTEST_BINARY", ROOT / "target/release/loadtest"))


def run_load(directory: Path, stack: contextlib.ExitStack) -> Prometheus:
    def start_gateway(**settings: object) -> Gateway:
        place = Path(tempfile.mkdtemp(dir=directory))
        gateway = Gateway(place, **settings)
        stack.callback(gateway.stop)
        return gateway

    def start_program(*command: object) -> Program:
        program = Program(Path(tempfile.mkdtemp(dir=directory)), list(command))
        stack.callback(program.stop)
        return program

    pair = Pair(
        start_gateway,
        shards=2,
        drain_grace="2s",
        drain_duration="8s",
        outbound_queue_bytes="256KiB",
    )
    prometheus = Prometheus(start_program, directory / "prometheus", SCRAPE_INTERVAL)
    for gateway in pair.gateways:
        prometheus.watch(gateway.admin_address)

    def load(gateway: Gateway, subscribers: int, rate: int, payload: str) -> None:
        start_program(
            *(loadtest(), "fanout", "--url", gateway.url(""), "--subscribers", subscribers),
            *("--rate", rate, "--size", "512", "--payload", payload, "--duration", f"{SECONDS}s"),
        )

    end = time.monotonic() + SECONDS
    load(pair.gateways[0], 300, 40, "json")
    load(pair.gateways[1], 200, 25, "json")
    stack.enter_context(again_and_again(Everything(pair.gateways[1], stack), pause=1.2))

    def stop_reading() -> None:
        with RawClient.open(
            pair.gateways[1].address, "/channels/slow", receive_buffer_bytes=4096
        ) as client, contextlib.suppress(EOFError, OSError):
            for _ in range(200):
                pair.gateways[1].api("publish", {"channel": "slow", "data": "x" * 60_000})
                client.send_frame(0x9)

    stack.enter_context(again_and_again(stop_reading, pause=10))
    prometheus.until(lambda: time.monotonic() >= end - 60, "it is time to drain", within=SECONDS)
    pair.gateways[0].signal(signal.SIGTERM)
    pair.gateways[0].wait(60)
    load(pair.start_again(0), 300, 40, "json")
    prometheus.until(lambda: time.monotonic() >= end, "the picture is whole", within=SECONDS)
    return prometheus


def human(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value * 1e6:.3g} µs" if value else "0"
    suffix = {"bytes": "B", "Bps": "B/s", "cps": "/s", "mps": "/s"}.get(unit, "")
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}{suffix}"
    return f"{value:.3g}{' ' if suffix else ''}{suffix}"


def name(legend: str, labels: dict[str, str], gateways: dict[str, str]) -> str:
    for label, value in labels.items():
        legend = legend.replace("{{" + label + "}}", gateways.get(value, value))
    return legend


def query(panel: dict, prometheus: Prometheus, gateways: dict[str, str]) -> list[tuple]:
    """Name, seconds ago and values of each series of a panel."""
    found = []
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", WINDOW).replace("$instance", ".*")
        for series in prometheus.query_range(expression, SECONDS - 8, 1):
            values = [(float(at), float(value)) for at, value in series["values"]]
            values = [(at, value) for at, value in values if math.isfinite(value)]
            if values:
                label = name(target["legendFormat"], series["metric"], gateways)
                found.append((label, [at for at, _ in values], [value for _, value in values]))
    return sorted(found)


def draw_number(axes: plt.Axes, panel: dict, series: list[tuple]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    text, colour = "none", "#888888"
    if series:
        value = series[0][2][-1]
        text, colour = human(value, unit), "#56a64b"
        for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]:
            if value >= step["value"]:
                colour = {"yellow": "#d9a400", "red": "#e02f44"}[step["color"]]
    axes.text(0.5, 0.42, text, ha="center", va="center", fontsize=19, color=colour, weight="bold")
    axes.set_xticks([])
    axes.set_yticks([])


def draw_lines(axes: plt.Axes, panel: dict, series: list[tuple], now: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(series))]
    if stacked and series:
        times = sorted({at for _, ats, _ in series for at in ats})
        rows = [[dict(zip(ats, values)).get(at, 0) for at in times] for _, ats, values in series]
        axes.stackplot([at - now for at in times], rows, colors=colours, alpha=0.75, linewidth=0)
    else:
        for (_, ats, values), colour in zip(series, colours):
            axes.plot([at - now for at in ats], values, color=colour, linewidth=1.3)
    axes.set_xlim(-(SECONDS - 8), 0)
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] < 1e-9 or not any(max(values) > 0 for _, _, values in series):
        axes.set_ylim(0, 1)
    if "max" in defaults:
        axes.set_ylim(0, defaults["max"])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value, defaults["unit"])))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s" if value else "now"))
    axes.set_axisbelow(True)
    axes.grid(color="#e8e8e8", linewidth=0.6)
    axes.tick_params(labelsize=6.5, colors="#666666", length=0)
    for (label, _, _), colour in zip(series, colours):
        axes.plot([], [], color=colour, linewidth=3, label=label)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=4, fontsize=6.3, frameon=False,
        handlelength=0.8, columnspacing=1.0, handletextpad=0.4,
    )


def draw(prometheus: Prometheus, pair_names: dict[str, str]) -> None:
    everything = json.loads((ROOT / "grafana/wsgate.json").read_text())["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in everything)
    figure = plt.figure(figsize=(24 * COLUMN, height * ROW), facecolor="#f4f5f5")
    now = time.time()
    for panel in everything:
        place = panel["gridPos"]
        left, width = place["x"] / 24, place["w"] / 24
        top, tall = 1 - place["y"] / height, place["h"] / height
        if panel["type"] == "row":
            figure.text(0.008, top - tall * 0.5, panel["title"], fontsize=10.5, weight="bold",
                        va="center", color="#222222")
            continue
        number = panel["type"] == "stat"
        # The card, and in it the axes.
        figure.add_artist(plt.Rectangle((left + 0.003, top - tall + 0.0015), width - 0.006, tall - 0.003,
                                        facecolor="white", edgecolor="#dddddd", linewidth=0.7, zorder=-1))
        figure.text(left + 0.01, top - 0.0085, panel["title"], fontsize=8, weight="bold", va="center",
                    color="#333333")
        below = 0.1 if number else 0.25
        above = 0.3 if number else 0.16
        axes = figure.add_axes((left + (0.01 if number else 0.048), top - tall * (1 - below),
                                width - (0.02 if number else 0.062), tall * (1 - below - above)))
        for side in axes.spines.values():
            side.set_visible(False)
        series = query(panel, prometheus, pair_names)
        if number:
            draw_number(axes, panel, series)
        else:
            draw_lines(axes, panel, series, now)
    with tempfile.NamedTemporaryFile(suffix=".png") as full:
        figure.savefig(full.name, dpi=100, facecolor=figure.get_facecolor())
        # A picture of few colours: 64 of them look the same and take a fifth.
        Image.open(full.name).convert("RGB").quantize(64).save(OUT, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        prometheus = run_load(Path(directory), stack)
        names = {f"{host}:{port}": f"gateway{number}" for number, (host, port) in enumerate(
            (address.rsplit(":", 1) for address in prometheus.instances), start=1)}
        draw(prometheus, names)
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
