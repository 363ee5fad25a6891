"""What a device can do at best, for model FLOPs utilisation (MFU). One that is not in the table has no MFU, not a wrong one."""

import torch

# Dense products, TFLOP/s a GPU, at the clock and power of the named form; figures with sparsity are halved. From NVIDIA's data
# sheets: A100 (1758950), H100 (2430615), H100 NVL, H200, GH200, HGX B200 and B300, GB200 and GB300 NVL72, L4, L40S.
# The first name that occurs in what the driver calls the device decides, so the special ones come first.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("GB300", {"bf16": 2500, "tf32": 1250, "fp32": 80, "fp8": 5000}),
    ("GB200", {"bf16": 2500, "tf32": 1250, "fp32": 80, "fp8": 5000}),
    ("B300", {"bf16": 2250, "tf32": 1125, "fp32": 75, "fp8": 4500}),
    ("B200", {"bf16": 2250, "tf32": 1125, "fp32": 75, "fp8": 4500}),
    ("GH200", {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9, "fp8": 1978.9}),
    ("H200 NVL", {"bf16": 835.5, "tf32": 417.5, "fp32": 60, "fp8": 1670.5}),
    ("H200", {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9, "fp8": 1978.9}),
    ("H100 NVL", {"bf16": 835.5, "tf32": 417.5, "fp32": 60, "fp8": 1670.5}),
    ("H100 PCIe", {"bf16": 756, "tf32": 378, "fp32": 51, "fp8": 1513}),
    ("H100", {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9, "fp8": 1978.9}),
    ("A100", {"bf16": 312, "tf32": 156, "fp32": 19.5}),
    ("L40S", {"bf16": 362.05, "tf32": 183, "fp32": 91.6, "fp8": 733}),
    ("L4", {"bf16": 121, "tf32": 60, "fp32": 30.3, "fp8": 242.5}),
)


def known_peak(name: str, dtype: str) -> float | None:
    """Peak FLOP/s of the device that its driver calls ``name``, in ``bf16``, ``tf32``, ``fp32`` or ``fp8``; None when unknown."""
    words = name.replace("-", " ").split()
    for device, peaks in _PEAKS:
        parts = device.split()
        if any(words[i : i + len(parts)] == parts for i in range(len(words))) or (len(parts) == 2 and set(parts) <= set(words)):
            return peaks[dtype] * 1e12 if dtype in peaks else None
    return None


def peak_here(accelerator: str, precision: str, fp8: bool = False) -> float | None:
    """Peak FLOP/s of this process's device in ``precision`` (fp32 | bf16); None on a CPU, whose peak has to be measured.

    Args:
        fp8: the blocks' linear maps are done in 8 bits. The peak is then that of 8 bits for the whole step, head and attention
            too, so that a share of it cannot flatter.
    """
    if accelerator != "gpu":
        return None
    if fp8:
        return known_peak(torch.cuda.get_device_name(), "fp8")
    tensor_cores = precision == "fp32" and torch.get_float32_matmul_precision() != "highest"
    return known_peak(torch.cuda.get_device_name(), "tf32" if tensor_cores else precision)
