"""Repeatable measurements: ``python -m benchmarks <name>``, each prints a table and writes JSON."""
