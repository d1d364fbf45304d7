"""Which processor there is, and which arithmetic and attention path suit it. Decided once, here, by what is present."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal, cast

import torch

from fundamentallm.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """The device that ``name`` means here.

    Raises:
        ConfigError: The device is not present on this machine, or is no device's name.
    """
    if name == "auto":
        if _cuda_devices():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{name!r} is no device: use auto, cpu, cuda, cuda:N or mps.") from None
    present = {
        "cpu": True,
        "cuda": (device.index or 0) < _cuda_devices(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise ConfigError(f"This machine has no device {name!r}: use auto or cpu.")
    return device


def _cuda_devices() -> int:
    """How many GPUs there are to compute on.

    A Space on ZeroGPU claims one in the process that serves the page, but lends it only to functions marked for that,
    never to a training in a process of its own.
    """
    if os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true"):
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def resolve_precision(name: str, device: torch.device) -> Precision:
    """The arithmetic that ``name`` means on ``device``; ``auto`` takes bf16 only where the hardware multiplies it.

    Raises:
        ConfigError: fp16 was asked for on a CPU, which has no loss scaling worth the name.
    """
    if name == "auto":
        return "bf16" if _multiplies_bf16(device) else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision fp16 needs a GPU: use auto, bf16 or fp32 on a CPU.")
    return cast(Precision, name)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a forward pass computes its matrix products in ``precision``."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, _DTYPES[precision])


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_multiplies_bf16()


@cache
def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bfloat16 dot products (AVX-512 BF16 or AMX). Without them bf16 is slower than fp32."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fused_attention_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``scaled_dot_product_attention`` beats softmax(QKᵀ)V written out.

    On a CPU in bf16 it was 5 to 8 times slower forward and backward at 64 to 128 tokens; in fp32 the two are equal and
    the fused one takes less memory; on a GPU the fused kernel wins everywhere.
    """
    return not (device.type == "cpu" and dtype == torch.bfloat16)


def describe_device(device: torch.device, precision: Precision) -> str:
    """One phrase for the log: device, threads or card, arithmetic."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, {precision}"
    return f"{device.type}, {precision}"
