"""What every test shares."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest

import fundamentallm  # noqa: F401 - before torch: see its note on threads

import torch  # isort: skip

# Tests run on busy machines: how long an example takes says nothing about whether it is right.
hypothesis.settings.register_profile("default", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the engine's tests compute: cpu, cuda or mps")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device != "cpu":
        # Every tensor that a test makes without a word about its device lies there; the engine says where its own do.
        torch.set_default_device(device)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell has its background ignore Ctrl-C, and so would every program that a test starts and interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A real browser beside a real training on two busy cores may miss a deadline once; a defect fails thrice."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=2))
