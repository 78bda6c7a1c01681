"""Makes the Grafana dashboard, dashboard.json, out of one table of its panels.

    pip install grafana-foundation-sdk    # Python 3.11 or later
    python dashboard.py

In Grafana: Dashboards, New, Import, and choose the Prometheus data source.
"""

from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from grafana_foundation_sdk.builders import dashboard, prometheus, table, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
)
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    VariableHide,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

HERE: Final = Path(__file__).resolve().parent
FILE: Final = HERE / "dashboard.json"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${source}")

# What every query selects, and over what span counters are turned into rates: at least three of
# the applications' exports.
_OF: Final = 'job=~"$job", instance=~"$instance"'
_SPAN: Final = "$span"


class Panel(NamedTuple):
    """A chart: its queries, each with how its lines are called."""

    title: str
    summary: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "lines"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _sum(metric: str, *by: str) -> str:
    return f"sum{_by(by)} ({metric}{{{_OF}}})"


def _max(metric: str, *by: str) -> str:
    return f"max by ({', '.join(by)}) ({metric}{{{_OF}}})"


def _rate(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{{{_OF}}}[{_SPAN}]))"


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    buckets = _rate(f"{metric}_bucket", "le")
    return tuple(
        (f"histogram_quantile({share}, {buckets})", f"p{share * 100:.0f}")
        for share in (0.5, 0.95, 0.99)
    )


def _mean(total: str) -> str:
    messages = f"({_rate('sse_server_messages_total', 'job', 'instance')} > 0)"
    return f"{_rate(total, 'job', 'instance')} / {messages}"


_INSTANCE: Final = "{{job}} {{instance}}"
ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Live": (
        Panel("Open now", "Connections that are open.", "short",
              ((_sum("sse_server_active_connections"), "open"),), "number"),
        Panel("Stalled now", "Open connections without a message for the stall time.", "short",
              ((_sum("sse_server_stalled_connections"), "stalled"),), "number"),
        Panel("Alerts now", "Alerts that are firing, but for information.", "short",
              (('count(ALERTS{alertname=~"SSE.*", alertstate="firing", severity!="info"})'
                " or vector(0)", "firing"),), "number"),
        Panel("Open connections", "By instance: is one carrying more than its share?", "short",
              ((_sum("sse_server_active_connections", "job", "instance"), _INSTANCE),), "area"),
        Panel("Open connections by route", "Where they are.", "short",
              ((_sum("sse_server_active_connections", "http_route"), "{{http_route}}"),), "area"),
        Panel("Oldest and idlest", "The oldest live connection, and the longest without a message.",
              "s",
              ((_max("sse_server_connection_age_max_seconds", "job"), "age {{job}}"),
               (_max("sse_server_connection_idle_max_seconds", "job"), "idle {{job}}"))),
        Panel("Pools", "Of the streams that a service's threads can hold, the share that is open.",
              "percentunit", (('job:sse_server_connection_limit:share{job=~"$job"}', "{{job}}"),)),
        Panel("Busiest client", "Live connections of one client address, the most of a process.",
              "short", ((_max("sse_server_connections_per_client_max", "job", "instance"),
                         _INSTANCE),)),
    ),
    "Churn": (
        Panel("Opened", "Connections opened a second, resumed ones apart.", "cps",
              ((_rate("sse_server_connections_total", "sse_resumed"),
                "resumed: {{sse_resumed}}"),), "area"),
        Panel("Closes by reason", "Connections that closed a second, by close reason.", "cps",
              ((_rate("sse_server_connection_duration_seconds_count", "sse_close_reason"),
                "{{sse_close_reason}}"),), "area"),
        Panel("Lifetime", "From the request's start to the end.", "s",
              _quantiles("sse_server_connection_duration_seconds")),
    ),
    "Refusals and losses": (
        Panel("Refused", "Clients refused a second, by the reference server's own count.", "cps",
              ((_rate("server_rejected_connections_total", "reason"), "{{reason}}"),), "area"),
        Panel("Dropped messages", "Messages that the application dropped, a second.", "cps",
              ((_rate("sse_server_dropped_messages_total", "sse_drop_reason"),
                "{{sse_drop_reason}}"),), "area"),
        Panel("Server errors", "Errors a second, by the reference server's own count.", "cps",
              ((_rate("server_errors_total", "class"), "{{class}}"),), "area"),
    ),
    "Messages": (
        Panel("Messages", "Written a second, by event type.", "cps",
              ((_rate("sse_server_messages_total", "sse_event_type"), "{{sse_event_type}}"),),
              "area"),
        Panel("Time to first message", "From the request's start.", "s",
              _quantiles("sse_server_connection_time_to_first_message_seconds")),
        Panel("Gaps", "Between two consecutive messages of a connection.", "s",
              _quantiles("sse_server_message_gap_seconds")),
        Panel("Message size", "Wire bytes of a message.", "bytes",
              _quantiles("sse_server_message_size_bytes")),
        Panel("Bytes", "Of the streams' bodies, a second.", "Bps",
              ((_rate("sse_server_io_bytes_total", "job"), "{{job}}"),), "area"),
        Panel("Comments", "Keep-alives, written a second.", "cps",
              ((_rate("sse_server_comments_total", "job"), "{{job}}"),)),
    ),
    "Waits": (
        Panel("Mean send", "How long the mean message waited in its send: exact.", "s",
              ((_mean("sse_server_send_time_seconds_total"), _INSTANCE),)),
        Panel("Send waits", "How long a send waited.", "s",
              _quantiles("sse_server_send_duration_seconds")),
        Panel("Slow sends", "Sends a second that waited at least the slow-send time.", "cps",
              ((_rate("sse_server_slow_sends_total", "job", "instance"), _INSTANCE),)),
        Panel("Stalled connections", "By instance.", "short",
              ((_sum("sse_server_stalled_connections", "job", "instance"), _INSTANCE),)),
        Panel("Backlog", "Accepted from the application, not yet taken by clients.", "bytes",
              ((_sum("sse_server_backlog_size_bytes", "sse_backlog_layer"),
                "{{sse_backlog_layer}}"),), "area"),
        Panel("Worst backlog", "Of one connection.", "bytes",
              ((_max("sse_server_backlog_max_bytes", "job", "instance"), _INSTANCE),)),
    ),
    "Objectives": (
        Panel("Error budget burn", "Within an hour; at 1 the month's budget just lasts.", "short",
              (('job_slo:sse_error_budget_burn:1h{job=~"$job"}', "{{slo}} {{job}}"),)),
        Panel("Error budget burn, slow", "Within three days.", "short",
              (('job_slo:sse_error_budget_burn:3d{job=~"$job"}', "{{slo}} {{job}}"),)),
        Panel("Bad events", "Within the shortest window: late first messages, bad closes, and the "
              "mean number of stalled connections.", "short",
              (('job_slo:sse_slo_bad_events:increase{job=~"$job"}', "{{slo}} {{job}}"),)),
    ),
    "Memory": (
        Panel("Memory", "Of the processes that stream.", "bytes",
              ((_max("instance:process_memory_usage_bytes:max", "job", "instance"), _INSTANCE),)),
        Panel("Memory slope", "Growth a second; what stays above zero is a leak.", "Bps",
              ((f"deriv(instance:process_memory_usage_bytes:max{{{_OF}}}[{_SPAN}])",
                _INSTANCE),)),
    ),
    "Alerts": (
        Panel("Firing", "Alerts of the Prometheus rules.", "short",
              (('ALERTS{alertname=~"SSE.*", alertstate="firing", job=~"$job|"}',
                "{{alertname}}"),), "table"),
        Panel("Breached in the collector", "Thresholds breached now; the measured value.", "short",
              ((f"sse_alert{{{_OF}}}", "{{alert}} {{job}} {{instance}}"),)),
    ),
}  # fmt: skip
_WIDTHS: Final = {"number": 8, "table": 12}


def _made(panel: Panel) -> Stat | table.Panel | timeseries.Panel:
    if panel.kind == "number":
        made: Stat | table.Panel | timeseries.Panel = (
            Stat().height(4).reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        )
    elif panel.kind == "table":
        made = table.Panel().height(8)
    else:
        legend = (
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        made = timeseries.Panel().height(8).legend(legend).line_width(1).min(0)
        if panel.kind == "area":
            stacked = StackingConfig().mode(StackingMode.NORMAL)
            made.fill_opacity(25).stacking(stacked)
        if panel.title == "Memory slope":
            made = timeseries.Panel().height(8).legend(legend).line_width(1)
    made.title(panel.title).description(panel.summary).unit(panel.unit).datasource(SOURCE)
    made.span(_WIDTHS.get(panel.kind, 12 if panel.title.startswith(("Memory", "Breached")) else 8))
    for letter, (expression, legend_format) in zip("ABC", panel.queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend_format).ref_id(letter)
        once = panel.kind == "table"
        made.with_target(query.instant().format(PromQueryFormat.TABLE) if once else query.range())
    return made


def _variables(made: dashboard.Dashboard) -> None:
    made.with_variable(dashboard.DatasourceVariable("source").label("Source").type("prometheus"))
    for name, label, query in (
        ("job", "Service", "label_values(sse_server_connections_per_client_max, job)"),
        (
            "instance",
            "Instance",
            'label_values(sse_server_connections_per_client_max{job=~"$job"}, instance)',
        ),
    ):
        made.with_variable(
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query(query)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .all_value(".*")
            .multi(True)
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )
    made.with_variable(
        dashboard.IntervalVariable("span")
        .label("Rates over")
        .values("1m,5m,15m,1h")
        .current(VariableOption(selected=True, text="5m", value="5m"))
        .hide(VariableHide.DONT_HIDE)
    )


def build() -> dashboard.Dashboard:
    """The whole dashboard."""
    made = (
        dashboard.Dashboard("Server-Sent Events")
        .uid("otel-sse")
        .description("Event streams, by the metrics of otel-sse.")
        .tags(["sse", "opentelemetry"])
        .time("now-1h", "now")
        .refresh("30s")
    )
    _variables(made)
    number = count(1)
    for title, panels in ROWS.items():
        made.with_row(dashboard.Row(title).id(next(number)))
        for panel in panels:
            made.with_panel(_made(panel).id(next(number)))
    return made


def text() -> str:
    return JSONEncoder(sort_keys=True, indent=1).encode(build().build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
