"""Measuring: a model's loss on a text, baselines to hold it against, and what it copied."""
