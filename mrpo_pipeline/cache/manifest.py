"""The identity of a reference's numbers: what they were computed from, fixed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mrpo_pipeline.errors import UserError

FORMAT = 1

# A hub commit names the weights where their content cannot be hashed, a template's file the template where there is no
# tokenizer to render with. Where the right-hand field is known it alone decides: a commit that touches only a model card
# changes no number.
STAND_INS = {"revision": "weights", "template_file": "template"}

# What a manifest that says nothing of a field means by that.
UNSAID = {"engine_options": "none"}


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds.

    Attributes:
        reference: the reference's name when the cache was made; for a reader, compared with nothing.
        fingerprint: field → value, of everything that changes the numbers.
        recorded: engine, versions, machine and time: for a reader, compared with nothing.
        format: version of the cache's layout.
    """

    reference: str
    fingerprint: Mapping[str, str]
    recorded: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def fingerprint_hash(self) -> str:
        """SHA-256 of the fingerprint's canonical JSON."""
        text = json.dumps(dict(self.fingerprint), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_bytes(self) -> bytes:
        document = {
            "format": self.format,
            "reference": self.reference,
            "fingerprint": dict(self.fingerprint),
            "fingerprint_hash": self.fingerprint_hash,
            "recorded": dict(self.recorded),
        }
        return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest.

        Args:
            data: the file's bytes.
            where: the file, for messages.

        Raises:
            UserError: where the file is no manifest, was changed, or is of a newer format.
        """
        try:
            document = json.loads(data)
            version = document["format"]
            if isinstance(version, int) and version > FORMAT:
                raise UserError(
                    f"{where} has format {str(version)[:20]}: this version of mrpo reads up to {FORMAT}; expected no newer one. "
                    "Upgrade mrpo, or name another cache folder."
                )
            fingerprint = document["fingerprint"]
            if version != FORMAT or not all(isinstance(value, str) for value in fingerprint.values()):
                raise ValueError("a field has the wrong type")
            manifest = cls(str(document["reference"]), fingerprint, dict(document["recorded"]), version)
            if manifest.fingerprint_hash != document["fingerprint_hash"]:
                raise ValueError("the fingerprint does not agree with its hash")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{where} is not a readable manifest ({reason}): expected the JSON that mrpo wrote when the reference was "
                "first scored. Restore the file from a copy; without it the numbers beside it have no known origin, and "
                "the reference's folder must be removed and scored again."
            ) from error
        return manifest

    def differences(self, expected: Mapping[str, str | None]) -> list[tuple[str, str, str]]:
        """Fields in which the cache is not what the run expects: (field, recorded, expected).

        A field that is None in ``expected`` cannot be told here, or is left to the cache (``auto``): it is not compared.
        """
        found = []
        for name, value in expected.items():
            if value is None or value == self.fingerprint.get(name, UNSAID.get(name)):
                continue
            if name in STAND_INS:
                content = STAND_INS[name]
                told = expected.get(content) is not None and content in self.fingerprint
                if told or name not in self.fingerprint:
                    continue
            found.append((name, self.fingerprint.get(name, "(not recorded)"), value))
        return found


def foreign(manifest: Manifest, data: bytes) -> str:
    """Why a shard that says it was computed from ``data`` (a fingerprint as JSON) is not of this manifest; empty where it
    is.

    Raises:
        ValueError: where it is no fingerprint.
    """
    try:
        fingerprint = json.loads(data)
    except RecursionError as error:
        raise ValueError("what it says of its origin is no fingerprint") from error
    if not isinstance(fingerprint, dict) or not all(isinstance(value, str) for value in fingerprint.values()):
        raise ValueError("what it says of its origin is no fingerprint")
    missing_here = Manifest("", fingerprint).differences(manifest.fingerprint)
    found = {name: (own, theirs) for name, own, theirs in manifest.differences(fingerprint)}
    found |= {name: (own, theirs) for name, theirs, own in missing_here}
    told = ", ".join(f"`{name}` is {theirs} in it and {own} in the manifest" for name, (own, theirs) in found.items())
    return f"it was not computed by this reference: {told}" if found else ""


def fixed_fields(fingerprint: Mapping[str, str | None]) -> dict[str, str]:
    """The fingerprint as it is written down: without the fields that do not apply.

    Raises:
        UserError: where neither the weights' content nor a revision is known, or another field is not: such numbers could
            never be told from others later.
    """
    known = {name: value for name, value in fingerprint.items() if value is not None}
    stood_in = {content for stand_in, content in STAND_INS.items() if stand_in in known}
    optional = stood_in | STAND_INS.keys()
    unknown = [name for name, value in fingerprint.items() if value is None and name not in optional]
    if unknown:
        raise UserError(
            f"A cache cannot be begun while {', '.join(unknown)} of the reference cannot be told: expected the model's "
            "files at hand. Check the reference's `model`, `adapter` and `tokenizer`, or download them first."
        )
    return known
