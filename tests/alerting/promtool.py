"""Rules in a folder, and promtool's judgement of them over simulated processes."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from alerting.processes import SCRAPE, STEP, Process
from helpers.tools import tool

COLLECTOR: Final = Path(__file__).resolve().parents[2] / "collector"
Firing = dict[str, int]


def render(folder: Path, **environment: object) -> None:
    """Renders the rules into the folder, with only these variables set."""
    shutil.copy(COLLECTOR / "prometheus/prometheus.yaml", folder)
    ran = rules(folder, **environment)
    assert ran.returncode == 0, ran.stderr


def rules(folder: Path, **environment: object) -> "subprocess.CompletedProcess[str]":
    """Runs rules.py on a folder with a prometheus.yaml."""
    kept = {name: value for name, value in os.environ.items() if name[:4] not in ("SSE_", "OTEL")}
    return subprocess.run(
        [sys.executable, str(COLLECTOR / "rules.py"), str(folder)],
        env={**kept, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
    )


def thresholds() -> dict[str, dict[str, Any]]:
    entries = yaml.safe_load((COLLECTOR / "thresholds.yaml").read_text())
    return {entry["alert"]: entry for entry in entries}


@dataclass
class Scenario:
    """Processes of one service, and what has to fire of it: at these seconds, and what has ever by
    the last of them. ``up`` is the collector's own ``up`` series, where it is not always there.
    """

    processes: list[Process]
    expected: dict[float, Firing]
    ever: Firing | None = None
    export: int = 60
    up: str | None = None
    pushed: bool = False

    @property
    def last(self) -> float:
        return max(self.expected)

    def scraped(self, job: str) -> dict[str, str]:
        """The series of its processes, as those of a service of this name."""
        series: dict[str, str] = {}
        for process in self.processes:
            named = replace(process, job=job)
            series |= named.scraped(self.export, self.last, pushed=self.pushed)
        return series

    def checks(self, job: str) -> Iterator[dict[str, Any]]:
        """Of this service, and of what belongs to none."""
        alerts = f'ALERTS{{alertstate="firing", job=~"{job}|{OF_THE_COLLECTOR}|"}}'
        for at, firing in self.expected.items():
            yield check(f"count by (alertname) ({alerts})", at, firing)
        if self.ever is not None:
            once = f"count by (alertname) (max_over_time({alerts}[{self.last:.0f}s]))"
            yield check(once, self.last, self.ever)


OF_THE_COLLECTOR: Final = "otel-collector"
Judged = dict[str, str]


def judge(rules: Path, cases: dict[str, Scenario]) -> Judged:
    """What promtool finds wrong with each case, nothing where all is right.

    An evaluation for one service takes almost as long as one for many, so all are evaluated
    together, each a service of its own; but not those for which the collector is not always there.
    """
    jobs = {f"case-{number}": each for number, each in enumerate(cases.values(), 1)}
    together = {job: case for job, case in jobs.items() if case.up is None}
    alone = [{job: case} for job, case in jobs.items() if case.up is not None]
    groups = []
    for services in (together, *alone):
        last = max((case.last for case in services.values()), default=0)
        up = next((case.up for case in services.values()), None) or f"1x{int(last / STEP)}"
        series = {f'up{{job="{OF_THE_COLLECTOR}",instance="c"}}': up}
        for job, case in services.items():
            series |= case.scraped(job)
        checks = [each for job, case in services.items() for each in case.checks(job)]
        groups.append(group(series, promql_expr_test=checks))
    output = promtool_test(rules, groups)
    wrong = dict.fromkeys(jobs, "")
    for fault in re.split(r"(?m)^ *(?=expr: )", output)[1:]:
        (job,) = re.findall(r"case-\d+", fault.partition("\n")[0])
        wrong[job] += fault
    # Its output is empty where nothing is wrong, and names nothing but the faults of the cases.
    assert not output or any(wrong.values()), output
    return dict(zip(cases, wrong.values(), strict=True))


def fires(rules: Path, case: Scenario) -> None:
    """Fails unless the alerts of this one fire as they have to."""
    assert judge(rules, {"it": case}) == {"it": ""}


def check(expression: str, at: float, firing: Firing) -> dict[str, Any]:
    samples = [
        {"labels": f'{{alertname="{name}"}}', "value": count} for name, count in firing.items()
    ]
    return {"expr": expression, "eval_time": f"{at:.0f}s", "exp_samples": samples}


def group(series: dict[str, str], **checks: Any) -> dict[str, Any]:
    input_series = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": f"{STEP * 1000:.0f}ms", "input_series": input_series, **checks}


def promtool_test(rules: Path, groups: list[dict[str, Any]]) -> str:
    """What it finds wrong."""
    content = {
        "rule_files": ["recording.yaml", "alerts.yaml"],
        "evaluation_interval": f"{SCRAPE}s",
        "group_eval_order": ["sse-recording", "sse-alerts"],
        "tests": groups,
    }
    file = rules / "test.yaml"
    file.write_text(yaml.safe_dump(content, width=10_000))
    ran = subprocess.run(
        [tool("promtool"), "test", "rules", file],
        # It makes much garbage in a short life.
        env={**os.environ, "GOGC": "800"},
        capture_output=True,
        text=True,
    )
    output = ran.stdout + ran.stderr
    assert (ran.returncode == 0) is ("SUCCESS" in output), output
    return "" if ran.returncode == 0 else output
