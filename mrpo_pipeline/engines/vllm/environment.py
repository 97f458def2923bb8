"""The environment of vLLM's process, and whether there is a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpo_pipeline.files.python_launch import child_environment


def environment(threads: int, options: Mapping[str, Any]) -> dict[str, str]:
    """The engine process's environment: no telemetry, few logs, and one process if that is enough."""
    variables = child_environment()
    variables |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not has_gpu():
        variables["OMP_NUM_THREADS"] = str(threads)
        # Threads that spin while they wait for each other make a busy machine three times slower.
        variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        parallel = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
        if parallel == 1:
            # Engine core and worker in this process: on a CPU two more imports of vLLM cost more than the overlap saves,
            # and the worker would be bound to all cores but one.
            variables.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # Blocks of prompt log-probs are hundreds of megabytes, allocated in every step: without malloc keeping them, a third
        # of the time is page faults. (vLLM preloads tcmalloc for this if its package has it.)
        variables.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 << 30))
        variables.setdefault("MALLOC_TRIM_THRESHOLD_", str(4 << 30))
    return variables


def has_gpu() -> bool:
    """Whether there is a GPU that vLLM could use, by its device file: cheap, and initialises nothing."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
