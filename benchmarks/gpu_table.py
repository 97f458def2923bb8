"""The table of the GPU benchmark, its claims, and whether everything that ran is correct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import measuring
from gpu_cells import DONE, FAILED
from measuring import claim

Documents = Mapping[str, dict[str, Any]]

HEADER = ["stage: what", "measured", "ratio", "share of peak", "peak memory, GB", "note"]

NOTES = """\
“Share of peak” is of the bfloat16 matrix product that this run measured. A ratio of speeds is times the line named; a ratio of
differences is the share of the program's own limit. Weights and token ids are random, and of the shapes of Llama-3.2-1B and
Llama-3.1-8B."""

# Cell, the cell it is compared with, the meaning of the ratio, and its goal; the first part names the stage.
GOALS: tuple[tuple[str, str, str, str, dict[str, float]], ...] = (
    ("stage_one", "mrpo, transformers engine", "plain transformers", "tokens/s", {}),
    ("stage_one", "mrpo, vLLM engine", "bare vLLM (LLM.generate)", "tokens/s", {"at_least": 0.95}),
    ("stage_two_8B", "mrpo, K = 1 cached", "TRL, reference in every step, Triton", "tokens/s", {"at_least": 2.0}),
    ("stage_two_8B", "mrpo, K = 1 cached", "TRL, precomputed, Triton", "tokens/s", {"at_least": 1.3}),
    ("stage_two_8B", "mrpo, K = 3 cached", "mrpo, K = 0 cached", "peak memory", {"at_most": 1.01}),
    ("fsdp2", "mrpo, two processes, FSDP2", "mrpo, one process", "tokens/s", {}),
)
MFU_GOAL = 0.45
NOTE_WIDTH = 90


def text(documents: Documents, machine: dict[str, Any]) -> str:
    devices = dict.fromkeys(document.get("device", "unknown") for document in documents.values())
    return "\n\n".join(
        [
            "# On a GPU",
            f"{'; '.join(devices)}. {measuring.describe_machine(machine)}",
            measuring.table(HEADER, [line for stage, document in documents.items() for line in rows(stage, document)]),
            NOTES,
        ]
    )


def rows(stage: str, document: Mapping[str, Any]) -> list[list[str]]:
    return [row(stage, name, document) for name in document["cells"]]


def row(stage: str, name: str, document: Mapping[str, Any]) -> list[str]:
    cell = document["cells"][name]
    if cell["state"] != DONE:
        return [f"{stage}: {name}", cell["state"], "", "", "", short(cell.get("why", ""))]
    base = document.get("bases", {}).get(name)
    wrong = "" if cell.get("ok", True) else "WRONG "
    return [
        f"{stage}: {name}",
        f"{cell['value']:,.4g} {cell['unit']}" if cell["value"] < 1e4 else f"{cell['value']:,.0f} {cell['unit']}",
        wrong + ratio(cell, base, document["cells"].get(base or "", {})),
        f"{cell['peak_share']:.0%}" if "peak_share" in cell else "",
        f"{cell['memory_bytes'] / 1e9:.2f}" if "memory_bytes" in cell else "",
        short(cell.get("note", "")),
    ]


def ratio(cell: Mapping[str, Any], base: str | None, of: Mapping[str, Any]) -> str:
    if "ratio" in cell:
        return f"{cell['ratio']:.2f} of {cell['of']}"
    if base is None:
        return ""
    if of.get("state") != DONE:
        return f"no {base}"
    return f"{cell['value'] / of['value']:.2f} × {base}"


def short(reason: str) -> str:
    """The first words; the full text is in the JSON."""
    reason = reason.replace("|", "/")
    return reason if len(reason) <= NOTE_WIDTH else reason[: NOTE_WIDTH - 1] + "…"


def sound(documents: Documents) -> bool:
    """Whether nothing failed and nothing is wrong; cells that were left out or lacked memory or time do not count."""
    cells = [cell for document in documents.values() for cell in document["cells"].values()]
    return all(cell["state"] != FAILED and cell.get("ok", True) for cell in cells)


def claims(documents: Documents) -> list[dict[str, Any]]:
    """For the summary table: the goals whose two cells were measured, each with the device's name."""
    found = []
    for stage, name, base, what, goal in GOALS:
        document = documents.get(stage, {"cells": {}})
        pair = [document["cells"].get(one, {}) for one in (name, base)]
        key = "memory_bytes" if what == "peak memory" else "value"
        if all(cell.get("state") == DONE and key in cell for cell in pair):
            title = f"{document['device']}, {stage}: {name} ÷ {base}, {what}"
            found.append(claim(title, pair[0][key] / pair[1][key], **goal))
    large = documents.get("stage_two_8B", {"cells": {}})
    share = large["cells"].get("mrpo, K = 1 cached", {}).get("peak_share")
    if share is not None:
        title = f"{large['device']}, stage_two_8B: mrpo, K = 1 cached, share of the measured peak"
        found.append(claim(title, share, at_least=MFU_GOAL, form="{:.2f}"))
    return found
