"""The scenarios, in the order of the page."""

from __future__ import annotations

from bench.scenarios.base import Scenario
from bench.scenarios.contention import CONTENTION
from bench.scenarios.curves import CURVES
from bench.scenarios.cycles import CYCLES
from bench.scenarios.memory import MEMORY
from bench.scenarios.profile import PROFILE
from bench.scenarios.races import RACES
from bench.scenarios.reads import READS
from bench.scenarios.server_time import SERVER_TIME
from bench.scenarios.sync import SYNC
from bench.scenarios.web import WEB
from bench.scenarios.wire import WIRE
from bench.scenarios.wsgi import WSGI

__all__ = ["SCENARIOS", "Scenario"]

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        CYCLES, READS, CONTENTION, RACES, SYNC, WEB, WSGI, MEMORY, WIRE, SERVER_TIME, CURVES,
        PROFILE,
    )
}  # fmt: skip
