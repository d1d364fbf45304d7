"""Repeatable measurements: ``python -m benchmarks <name>``, each prints a table and writes JSON."""

import fundamentallm  # noqa: F401 - before torch: see its note on threads
