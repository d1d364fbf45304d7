"""Networks: the transformer, the bigram, and the cache they decode with."""

from fundamentallm.models.base import BaseModel, build_model
from fundamentallm.models.kv_cache import KVCache

__all__ = ["BaseModel", "KVCache", "build_model"]
