"""The manifest of a reference's cache: the fingerprint of the model and settings that its log-probs come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mrpo_pipeline.cache import probe_logps
from mrpo_pipeline.errors import UserError

FORMAT = 1

# Fields that replace a content hash where that is unknown: a hub commit for the weights, a template's file for the template. A known
# hash alone decides: a commit that only changes a model card changes no log-prob. A revision that a server no longer reports is not
# compared.
STAND_INS = {"revision": "weights", "template_file": "template", "served_revision": "served_weights"}

# Defaults of fields that a manifest does not have.
DEFAULTS = {"engine_options": "none"}


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        reference: the reference's name when the cache was created; informative, not compared.
        fingerprint: field → value, of everything that changes the log-probs.
        recorded: engine, versions, machine and time; informative, not compared.
        card: how the cache was published (`token_ids: withheld`); not compared.
        format: version of the cache's layout.
        edited: whether the file was changed since it was written, except for its fingerprint.
    """

    reference: str
    fingerprint: Mapping[str, str]
    recorded: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    edited: bool = field(default=False, compare=False)

    @property
    def ids_withheld(self) -> bool:
        """Whether the cache was published with 0 in place of each token id."""
        return self.card.get("token_ids") == "withheld"

    @property
    def fingerprint_hash(self) -> str:
        """SHA-256 of the fingerprint's canonical JSON."""
        return _digest(dict(self.fingerprint))

    def to_bytes(self) -> bytes:
        document = {
            "format": self.format,
            "reference": self.reference,
            "fingerprint": dict(self.fingerprint),
            "fingerprint_hash": self.fingerprint_hash,
            "recorded": dict(self.recorded),
            **({"card": dict(self.card)} if self.card else {}),
        }
        document["digest"] = _digest(document)
        return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest.

        Args:
            data: the file's bytes.
            where: the file, for messages.

        Raises:
            UserError: for a file that is not a manifest, was edited, or has a newer format.
        """
        try:
            document = json.loads(data)
            version = document["format"]
            if isinstance(version, int) and version > FORMAT:
                raise UserError(
                    f"{where} has format {str(version)[:20]}: this version of mrpo reads up to {FORMAT}: expected no newer one. "
                    "Upgrade mrpo, or use another cache folder."
                )
            fingerprint = document["fingerprint"]
            if version != FORMAT or not all(isinstance(value, str) for value in fingerprint.values()):
                raise ValueError("a field has the wrong type")
            # Earlier versions wrote no digest. Only the fingerprint is compared, so an edited manifest can be used; it is not copied.
            edited = document.pop("digest", None) not in (None, _digest(document))
            manifest = cls(
                str(document["reference"]),
                fingerprint,
                dict(document["recorded"]),
                dict(document.get("card") or {}),
                version,
                edited,
            )
            if manifest.fingerprint_hash != document["fingerprint_hash"]:
                raise ValueError("the fingerprint does not agree with its hash")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"no {error} in it" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{where} is not a readable manifest ({reason}). Without it the origin of the log-probs is unknown: restore it from a "
                "backup, or remove the reference's folder and score again."
            ) from error
        return manifest

    def differences(self, expected: Mapping[str, str | None]) -> list[tuple[str, str, str]]:
        """Fields that differ: (field, recorded, expected). Fields that are None in ``expected``, unknown or ``auto``, are not compared."""
        found = []
        for name, value in expected.items():
            if value is None or value == self.fingerprint.get(name, DEFAULTS.get(name)):
                continue
            if name == probe_logps.FIELD and name in self.fingerprint:
                if (both := probe_logps.difference(self.fingerprint[name], value)) is not None:
                    found.append((name, *both))
                continue
            if name in STAND_INS:
                content = STAND_INS[name]
                known = expected.get(content) is not None and content in self.fingerprint
                if known or name not in self.fingerprint:
                    continue
            found.append((name, self.fingerprint.get(name, "(not recorded)"), value))
        return found


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the document's canonical JSON, 64 hex digits."""
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def foreign(manifest: Manifest, data: bytes) -> str:
    """How a shard's fingerprint (JSON) differs from the manifest's; empty where it does not. Raises ValueError for a malformed one."""
    try:
        fingerprint = json.loads(data)
    except RecursionError as error:
        raise ValueError("its fingerprint is malformed") from error
    if not isinstance(fingerprint, dict) or not all(isinstance(value, str) for value in fingerprint.values()):
        raise ValueError("its fingerprint is malformed")
    missing_here = Manifest("", fingerprint).differences(manifest.fingerprint)
    found = {name: (own, theirs) for name, own, theirs in manifest.differences(fingerprint)}
    found |= {name: (own, theirs) for name, theirs, own in missing_here}
    text = ", ".join(f"`{name}` is {theirs} in it and {own} in the manifest" for name, (own, theirs) in found.items())
    return f"it was not computed by this reference: {text}" if found else ""


def fixed_fields(fingerprint: Mapping[str, str | None]) -> dict[str, str]:
    """The fingerprint without fields that do not apply.

    Raises:
        UserError: if neither a hash nor a revision of the weights is known, or another field is unknown: log-probs of different
            models could not be distinguished later.
    """
    known = {name: value for name, value in fingerprint.items() if value is not None}
    stood_in = {content for stand_in, content in STAND_INS.items() if stand_in in known}
    optional = stood_in | STAND_INS.keys()
    unknown = [name for name, value in fingerprint.items() if value is None and name not in optional]
    if unknown:
        raise UserError(
            f"The cache can't be created, because {', '.join(unknown)} of the reference cannot be determined: expected the model's local "
            "files. Check the reference's `model`, `adapter` and `tokenizer`, or download them first."
        )
    return known
