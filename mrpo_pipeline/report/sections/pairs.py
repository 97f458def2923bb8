"""The pairs on which the methods part, with their texts."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo_pipeline.report.disagreements import Disagreement, Stand, disagreements_of
from mrpo_pipeline.report.formatting import LONGEST, OPENING, count, fixed, one_line, visible
from mrpo_pipeline.report.results_folder import Folder


@dataclass(frozen=True)
class Passage:
    """A text of the data, made harmless: its opening where it is long, and the whole (up to a limit)."""

    whole: str
    opening: str
    rest: bool
    length: str
    cut: bool
    kept: str


@dataclass(frozen=True)
class ShownStand:
    """How one method stands on a pair, for the eye (sign, margin) and the ear (says)."""

    method: str
    kind: str
    sign: str
    says: str
    margin: str


@dataclass(frozen=True)
class ShownPair:
    """One pair."""

    short_id: str
    prompt: Passage
    chosen: Passage
    rejected: Passage
    stands: list[ShownStand]


@dataclass(frozen=True)
class PairsSection:
    """The pairs and the sentence over them."""

    sentence: str
    shown: list[ShownPair]


def pairs_section(folder: Folder) -> PairsSection | None:
    """From ``held_out.parquet`` and the runs' ``pairs.parquet``; None where they are not there."""
    found = disagreements_of(folder)
    if found is None:
        return None
    if not found.shown:
        return PairsSection(f"On each of {count(found.pairs)} held-out pairs, every method prefers the same side.", [])
    sentence = (
        f"On {count(found.parted)} of {count(found.pairs)} held-out pairs some methods prefer the chosen side and others the "
        "rejected one. "
        + (f"These {len(found.shown)} part them most. " if found.parted > len(found.shown) else "")
        + "Behind each method: how much likelier it finds the chosen side, in nats, mean over seeds; a minus sign is a wrong "
        "preference, ± stands where its seeds part."
    )
    return PairsSection(sentence, [_shown(pair) for pair in found.shown])


def _shown(pair: Disagreement) -> ShownPair:
    stands = []
    if pair.start is not None:
        side = "chosen" if pair.start > 0 else "rejected"
        stands.append(ShownStand("before training", "before", "·", f"prefers the {side} side:", _nats(pair.start)))
    stands += [_stand(stand) for stand in pair.stands]
    return ShownPair(
        one_line(pair.pair_id)[:8], passage(pair.prompt), passage(pair.chosen), passage(pair.rejected), stands
    )


def _stand(stand: Stand) -> ShownStand:
    method = one_line(stand.method)
    if stand.right == 1:
        return ShownStand(method, "right", "✓", "prefers the chosen side:", _nats(stand.margin))
    if stand.right == 0:
        return ShownStand(method, "wrong", "✗", "prefers the rejected side:", _nats(stand.margin))
    share = f"{100 * stand.right:.0f}% of its seeds prefer the chosen side:"
    return ShownStand(method, "split", "±", share, _nats(stand.margin))


def _nats(value: float) -> str:
    text = fixed(value, 1 if abs(value) >= 1 else 2)
    return f"+{text}" if value > 0 and float(text.replace(",", "")) else text


def passage(text: str) -> Passage:
    """A text of the data as the page shows it."""
    clean = visible(text[: LONGEST + 1])
    cut = len(text) > LONGEST
    clean = clean[:LONGEST]
    long = len(clean) > OPENING * 3 // 2 or clean.count("\n") > 12
    opening = "\n".join(clean[:OPENING].split("\n")[:8]).rstrip()
    return Passage(clean, opening, long, count(len(text)), cut, count(LONGEST))
