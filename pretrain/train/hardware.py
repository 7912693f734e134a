"""Peak speeds of accelerators by the name jax gives them, for model FLOPs utilisation (MFU)."""

import jax

# Dense bfloat16 FLOP/s per jax device, from the makers' datasheets. v4 and later TPUs: one device a chip, except v7x.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of one device, or None when it is not in the table (every CPU)."""
    matches = [name for name in PEAK_FLOPS if device.device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None
