"""Writing: samplers choose a token from logits, the generator iterates over tokens."""

from fundamentallm.generation.generator import generate
from fundamentallm.generation.samplers import BaseSampler, build_sampler

__all__ = ["BaseSampler", "build_sampler", "generate"]
