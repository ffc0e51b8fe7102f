"""The simulator: a server that behaves as the documented endpoint, with faults on demand."""

from api_client.simulator.config import SimulatorConfig
from api_client.simulator.serve import serve
from api_client.simulator.simulator import Simulator
from api_client.simulator.thread import SimulatorThread
from api_client.simulator.timetable import parse_step
from api_client.simulator.tokens import count_tokens, expected_usage

__all__ = [
    "Simulator",
    "SimulatorConfig",
    "SimulatorThread",
    "count_tokens",
    "expected_usage",
    "parse_step",
    "serve",
]
