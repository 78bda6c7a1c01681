"""Two processes that run the same plan, one with otel_sse and one without it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from storm.compare import Difference, differences
from storm.plans import Plan

_WORKER = Path(__file__).with_name("worker.py")
# How often a difference has to show before it is believed: timing differs from run to run, with
# otel_sse and without.
RUNS = 3


class Pair:
    """The two processes; each plan runs in both at the same time."""

    def __init__(self) -> None:
        self._processes = {side: _start(side) for side in ("with", "without")}
        # Differences that did not show again.
        self.unconfirmed: list[tuple[Plan, list[Difference]]] = []

    def close(self) -> None:
        for process in self._processes.values():
            process.stdin.close()  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def observe(self, plan: Plan) -> tuple[Any, Any]:
        """What both processes observed."""
        line = plan.dumps() + "\n"
        for side in ("with", "without"):
            stdin = self._processes[side].stdin
            assert stdin is not None
            stdin.write(line)
            stdin.flush()
        return self._answer("with"), self._answer("without")

    def _answer(self, side: str) -> Any:
        stdout = self._processes[side].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            self._processes[side].kill()
            self._processes[side] = _start(side)
            return {"failed": f"the process {side} ended"}
        return json.loads(line)

    def differences(self, plan: Plan) -> list[Difference]:
        """The differences that show in each of several runs."""
        seen, plain = self.observe(plan)
        found = differences(plan, seen, plain)
        if not found:
            return found
        first = found
        # Beside any of the other process's runs: what varies there is nobody's fault.
        seens, plains = [seen], [plain]
        for _ in range(RUNS - 1):
            seen, plain = self.observe(plan)
            seens.append(seen)
            plains.append(plain)
        kinds: set[str] | None = None
        for one in seens:
            each = [differences(plan, one, other) for other in plains]
            common = set.intersection(*({d.kind for d in some} for some in each))
            kinds = common if kinds is None else kinds & common
        confirmed = [d for d in found if d.kind in (kinds or ())]
        if not confirmed:
            self.unconfirmed.append((plan, first))
        return confirmed


def _start(side: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(_WORKER), side],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    if "ready" not in process.stdout.readline():
        process.kill()
        raise RuntimeError(f"the process {side} does not start")
    return process
