"""What every test shares."""

from __future__ import annotations

import os

import hypothesis

import fundamentallm  # noqa: F401 - before torch: see its note on threads

# Tests run on busy machines: how long an example takes says nothing about whether it is right.
hypothesis.settings.register_profile("default", deadline=None, max_examples=60, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("default")
