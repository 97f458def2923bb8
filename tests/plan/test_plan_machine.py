"""The device of a plan: a GPU by its driver's name, or the CPU by its measured speed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mrpo_pipeline.plan import hardware
from mrpo_pipeline.plan.extrapolation import Estimate
from mrpo_pipeline.plan.gpus import GPUS, gpu_here, recognize
from mrpo_pipeline.plan.hardware import choose_machine, cpu_flops

# Names as nvidia-smi and rocm-smi print them.
KNOWN = {
    "NVIDIA L4": "l4",
    "NVIDIA L40": "l40",
    "NVIDIA L40S": "l40s",
    "NVIDIA A10": "a10",
    "NVIDIA A10G": "a10g",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA A30": "a30",
    "NVIDIA A40": "a40",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA GH200 144G HBM3e": "gh200",
    "NVIDIA B200": "b200",
    "NVIDIA RTX A5000": "rtx-a5000",
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA RTX 6000 Ada Generation": "rtx6000-ada",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 5090": "rtx5090",
    "AMD Instinct MI300X": "mi300x",
}
UNKNOWN = (
    "NVIDIA L2", "NVIDIA L20", "NVIDIA L40G", "NVIDIA A2", "NVIDIA A16", "NVIDIA A10M", "NVIDIA A100X", "NVIDIA A100-SXM-64GB",
    "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "GRID A100X-40C", "NVIDIA A40-48Q",
    "NVIDIA A800-SXM4-80GB", "NVIDIA H20", "NVIDIA H800", "NVIDIA GB200", "NVIDIA RTX A1000", "NVIDIA RTX A1000 Laptop GPU",
    "NVIDIA RTX A2000 12GB", "NVIDIA RTX A4000", "NVIDIA RTX 2000 Ada Generation", "NVIDIA RTX 4000 SFF Ada Generation",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "Quadro RTX 6000", "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 5090 Laptop GPU", "Tesla T4",
    "Tesla V100-SXM2-16GB", "Tesla P100-PCIE-16GB", "AMD Instinct MI250X", "",
)  # fmt: skip


def with_gpu(monkeypatch: pytest.MonkeyPatch, name: str, memory: int) -> None:
    properties: Any = SimpleNamespace(name=name, total_memory=memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_a_gpu_is_recognized_by_all_words_of_its_name() -> None:
    assert {name: recognize(name) for name in KNOWN} == KNOWN
    assert {name: found for name in UNKNOWN if (found := recognize(name))} == {}
    assert {name: recognize(name) for name in GPUS} == {name: name for name in GPUS}


def test_an_unknown_gpu_has_the_memory_of_its_driver_and_no_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, "NVIDIA RTX A1000", 8_580_000_000)
    found = gpu_here()
    assert found is not None and (found.label, found.peak_tflops, found.memory_bytes) == (
        "NVIDIA RTX A1000", None, 8_580_000_000,
    )  # fmt: skip
    here = choose_machine(None, 1)
    assert here.device == "gpu" and here.memory_bytes == 8_580_000_000
    assert here.hours(Estimate(1e15), "bfloat16") is None and here.describe_cpu(["float32"]) is None
    with_gpu(monkeypatch, "NVIDIA L40", 47_700_000_000)
    known = gpu_here()
    assert known is not None and (known.peak_tflops, known.memory_bytes) == (181.0, 47_700_000_000)


def test_hours_of_a_cpu_follow_its_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert 1e8 < cpu_flops("float32") < 1e15
    monkeypatch.setattr(hardware, "cpu_flops", lambda dtype: {"float32": 1e11, "float16": 1e9}[dtype])
    here = choose_machine(None, 1, 0.5)
    assert here.device == "cpu" and here.describe_gpu() is None
    hours = here.hours(Estimate(3.6e14), "float32")
    assert hours is not None and hours.value == pytest.approx(2.0)
    slow = here.hours(Estimate(3.6e14), "float16")
    assert slow is not None and slow.value == pytest.approx(200.0)
    assert here.hours(Estimate(3.6e14), None) is None
    cpu = here.describe_cpu(["float32", "float32"])
    assert cpu is not None and cpu["gflops"] == {"float32": 100.0} and cpu["threads"] == torch.get_num_threads()
    none = choose_machine("none", 1)
    assert none.hours(Estimate(3.6e14), "float32") is None and none.describe_cpu(["float32"]) is None
