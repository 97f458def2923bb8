"""Flip one byte of every shard of a really scored cache, at many positions each: it must be detected before a number is
used.

python tests/soak/byte_flips.py # 100 random positions in every shard, and chosen ones
python tests/soak/byte_flips.py --count 5 --seed 1 --out /tmp/flips

After each flip the cache is read as training reads it: without derived sums, where the shard must be refused by name; and
with the sums of an earlier run, which must be exactly those of the intact shard. `verify` must name that file and no other.
On a sample `mrpo cache verify --repair` runs: it must score again exactly the rows of the shard, and the cache must then
serve what the undamaged one serves.

The same is done for records of unscorable completions, derived sums and the manifest, and for files that are truncated,
emptied, exchanged, renamed, copied from another reference, or removed.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow.parquet as pq
from driver import parser_of, write_summary, wrong_lines
from real_cache import NEAR, RealCache

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.scoring import repair_cache
from mrpo_pipeline.verify import verify_cache


@dataclass
class Flips:
    """Results. Attributes: count: random positions in every file. repairs: flips that are repaired. seen: kind → outcome →
    how often. wrong: a line for each violation."""

    world: RealCache
    seed: int = 0
    count: int = 100
    repairs: int = 12
    seen: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def tally(self, kind: str, what: str, count: int = 1) -> None:
        self.seen.setdefault(kind, Counter())[what] += count

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what[:600])

    def refusal(self, read: Callable[[], object]) -> str:
        """The error of a reader; empty if it gets numbers."""
        try:
            read()
        except (RunError, UserError) as error:
            return str(error)
        return ""

    def named(self) -> dict[str, str]:
        """Every file that verify names, with its problem."""
        found: dict[str, str] = {}
        for one in verify_cache(self.world.recipe, check=0):
            found |= {f"{one.reference}/{name}": problem for name, problem in one.damaged.items()}
        return found

    def damaged(self, kind: str, name: str, what: str) -> None:
        """With a damaged file, no reader gets a number of it, and verify names it and no other."""
        world = self.world
        for reference in world.names:
            kept = world.root / reference / "sums-kept"
            if (world.root / reference / "sums").is_dir():
                (world.root / reference / "sums").rename(kept)
        told = self.refusal(world.read)
        self.expect(name in told, f"{what}: training without sums was told {told or 'nothing, and given numbers'}")
        self.tally(kind, "refused by training")
        world.drop_sums()
        for reference in world.names:
            kept = world.root / reference / "sums-kept"
            if kept.is_dir():
                kept.rename(world.root / reference / "sums")
        if name.split("/")[1] == "shards":
            told = self.refusal(lambda: self.expect(world.same(world.read()), f"{what}: sums give other numbers"))
            # For a completion that does not fit, shards are read as well as the sums, and may be refused.
            self.expect(not told or name in told, f"{what}: training with sound sums was told {told}")
            self.tally(kind, "refused beside sound sums" if told else "sound sums gave the sound numbers")
        found = self.named()
        self.expect(list(found) == [name], f"{what}: verify named {found or 'nothing'}")
        self.tally(kind, "named by verify")
        missing = self.refusal(lambda: world.cache(name.split("/")[0]).missing(world.wanted))
        self.tally(kind, "refused by scoring at its start" if missing else "left by scoring for training to find")

    def flip(self, path: Path, at: int, kind: str, check: Callable[[str, str, str], None]) -> None:
        """Flip one bit of one byte, check, and restore the byte."""
        sound = path.read_bytes()
        changed = bytearray(sound)
        changed[at] ^= 1 << self.draw.randrange(8)
        path.write_bytes(changed)
        name = path.relative_to(self.world.root).as_posix()
        check(kind, name, f"{name}, byte {at:,} of {len(sound):,} ({kind})")
        path.write_bytes(sound)

    def shards(self) -> None:
        """Every shard, at random and chosen positions."""
        for reference in self.world.names:
            for path in self.world.files(reference):
                size = path.stat().st_size
                for _ in range(self.count):
                    self.flip(path, self.draw.randrange(size), "shard, at random", self.damaged)
                places = list(aimed(path))
                for kind, at in self.draw.sample(places, min(len(places), self.count)):
                    self.flip(path, at, f"shard, {kind}", self.damaged)

    def unfit(self) -> None:
        """Records of unscorable completions: without them, a pair would be missing its log-probs."""
        for reference in self.world.names:
            for path in self.world.files(reference, "unfit"):
                for _ in range(self.count):
                    self.flip(path, self.draw.randrange(path.stat().st_size), "record of the unfit", self.damaged)

    def sums(self) -> None:
        """Derived sums: never trusted, always rebuilt."""

        def rebuilt(kind: str, name: str, what: str) -> None:
            told = self.refusal(lambda: self.expect(self.world.same(self.world.read()), f"{what}: other numbers"))
            self.expect(not told, f"{what}: training was told {told}")
            self.tally(kind, "made again, the same numbers")

        for reference in self.world.names:
            for path in self.world.files(reference, "sums"):
                for at in [
                    0,
                    4,
                    path.stat().st_size - 1,
                    *(self.draw.randrange(path.stat().st_size) for _ in range(self.count)),
                ]:
                    sound = path.read_bytes()
                    self.flip(path, at, "derived sums", rebuilt)
                    self.expect(path.read_bytes() == sound, f"{path.name}: not what it was")

    def manifests(self) -> None:
        """Every byte of a manifest: refused, or irrelevant to the log-probs."""

        def judged(kind: str, name: str, what: str) -> None:
            told = self.refusal(lambda: self.expect(self.world.same(self.world.read()), f"{what}: other numbers"))
            if told:
                self.expect("manifest.json" in told, f"{what}: training was told {told}")
                self.expect("manifest.json" in self.refusal(self.named), f"{what}: verify did not name it")
                self.tally(kind, "refused by training, named by verify")
                return
            document = json.loads((self.world.root / name).read_bytes())
            sound = json.loads((self.world.pristine / name).read_bytes())
            self.expect(document["fingerprint"] == sound["fingerprint"], f"{what}: another fingerprint was believed")
            self.tally(kind, "in a part that is for people: the same numbers")

        for reference in self.world.names:
            path = self.world.root / reference / "manifest.json"
            every = range(path.stat().st_size)
            for at in every if self.count >= 100 else self.draw.sample(every, min(len(every), self.count * 2)):
                self.flip(path, at, "manifest", judged)

    def exchanged(self) -> None:
        """Whole files: truncated, emptied, exchanged, renamed, copied from elsewhere, removed."""
        world = self.world
        for reference, other in zip(world.names, [*world.names[1:], world.names[0]], strict=True):
            shards = list(zip(world.files(reference), world.files(other), strict=False))
            for path, foreign in shards if self.count >= 50 else shards[:1]:
                for kind, path_of, data in exchanges(path, foreign, self.draw):
                    sound = path.read_bytes()
                    path.unlink()
                    path_of.write_bytes(data)
                    name = path_of.relative_to(world.root).as_posix()
                    self.damaged_and_gone(kind, name, path, path_of, sound)
                    path_of.unlink()
                    path.write_bytes(sound)
                self.copied(path, foreign)
                self.gone(reference, path)

    def damaged_and_gone(self, kind: str, name: str, path: Path, path_of: Path, sound: bytes) -> None:
        if path_of == path:
            self.damaged(kind, name, f"{name} ({kind})")
            return
        # Sums are keyed by shard names: with another name they are not read.
        told = self.refusal(self.world.read)
        self.expect(name in told, f"{name} ({kind}): training was told {told or 'nothing'}")
        self.expect(list(self.named()) == [name], f"{name} ({kind}): verify named {self.named()}")
        self.tally(kind, "refused by training")
        self.tally(kind, "named by verify")

    def copied(self, path: Path, foreign: Path) -> None:
        """An intact shard of another reference, under its own name, beside this one's."""
        kind = "another reference's shard beside this one's"
        placed = path.with_name(foreign.name)
        shutil.copy(foreign, placed)
        name = placed.relative_to(self.world.root).as_posix()
        told = self.refusal(self.world.read)
        self.expect(
            name in told and "not computed by this reference" in told, f"{name} ({kind}): told {told or 'nothing'}"
        )
        self.expect(list(self.named()) == [name], f"{name} ({kind}): verify named {self.named()}")
        self.tally(kind, "refused by training")
        self.tally(kind, "named by verify")
        placed.unlink()

    def gone(self, reference: str, path: Path) -> None:
        """A missing shard: its rows are missing and counted, and nothing else is."""
        held = set(pq.read_table(path, columns=["completion_id"], use_threads=False)["completion_id"].to_pylist())
        sound = path.read_bytes()
        path.unlink()
        told = self.refusal(self.world.read)
        lacking = set(self.world.cache(reference).missing(self.world.wanted)["completion_id"])
        # Pairs that do not fit another reference are dropped for all: their rows are not read.
        frame = self.world.undamaged.frame
        asked = len(held & {*frame["chosen_id"], *frame["rejected_id"]})
        self.expect(f"Reference {reference} " in told and f"lacks {asked} of" in told, f"{path.name} gone: {told}")
        self.expect(lacking == held, f"{path.name} gone: {len(lacking)} are missing where it held {len(held)}")
        self.expect(not self.named(), f"{path.name} gone: verify named {self.named()}")
        self.tally("shard gone", "refused by training")
        self.tally("shard gone", "its completions, and they alone, are missing")
        path.write_bytes(sound)

    def repaired(self) -> None:
        """Repair some flips with the real command."""
        world = self.world
        every = [(reference, path) for reference in world.names for path in world.files(reference)]
        for reference, path in (self.draw.choice(every) for _ in range(self.repairs)):
            held = set(pq.read_table(path, columns=["completion_id"], use_threads=False)["completion_id"].to_pylist())
            before = {one: one.read_bytes() for _, one in every if one != path}
            changed = bytearray(path.read_bytes())
            at = self.draw.randrange(len(changed))
            changed[at] ^= 1 << self.draw.randrange(8)
            path.write_bytes(changed)
            what = f"repair of {reference}/{path.name}, byte {at:,}"
            (done,) = repair_cache(world.recipe)
            self.expect(list(done.damaged) == [f"shards/{path.name}"], f"{what}: {done.damaged}")
            self.expect(done.rescored == len(held), f"{what}: {done.rescored} scored again, {len(held)} were hit")
            self.expect(all(one.read_bytes() == data for one, data in before.items()), f"{what}: a sound shard changed")
            aside = world.root / reference / "damaged" / path.name
            self.expect(aside.read_bytes() == bytes(changed), f"{what}: not set aside as it was")
            self.wrong += [f"{what}: {wrong}" for wrong in world.differences()]
            self.expect(world.same(world.train(), NEAR), f"{what}: training reads other numbers")
            self.expect(not self.named(), f"{what}: verify still names {self.named()}")
            self.tally("repair", "only what was hit was scored again")
            self.tally("repair", "completions scored again", done.rescored or 0)
            world.restore()

    def run(self) -> None:
        for step in (self.shards, self.unfit, self.sums, self.manifests, self.exchanged, self.repaired):
            began = time.monotonic()
            step()
            print(f"  {step.__name__}: {time.monotonic() - began:.0f} s, {len(self.wrong)} wrong so far", flush=True)


def aimed(path: Path) -> Iterator[tuple[str, int]]:
    """Positions in a shard with a meaning, by name."""
    data = path.read_bytes()
    size = len(data)
    footer = size - 8 - int.from_bytes(data[-8:-4], "little")
    yield from (("first bytes", at) for at in range(4))
    yield from (("last bytes", at) for at in range(size - 8, size))
    yield from (("footer", at) for at in range(footer, size - 8, max(1, (size - 8 - footer) // 40)))
    for key in (b"ARROW:schema", b"mrpo.fingerprint", b"logprobs", b"byte_ends"):
        at = data.find(key, footer)
        yield from (("schema and metadata", at + step) for step in (0, len(key) + 3) if at >= 0)
    metadata = pq.ParquetFile(path).metadata
    for number in range(metadata.num_columns):
        column = metadata.row_group(0).column(number)
        first = column.dictionary_page_offset or column.data_page_offset
        yield from (("page headers", first + step) for step in range(0, 24, 3))
        if column.statistics is not None and column.statistics.has_min_max:
            low = column.statistics.min
            at = data.find(low.encode() if isinstance(low, str) else str(low).encode(), footer)
            yield from (("statistics", at + step) for step in (0, 5) if at >= 0)


def exchanges(path: Path, foreign: Path, draw: random.Random) -> Iterator[tuple[str, Path, bytes]]:
    """Possible replacements of a shard: kind, name, bytes."""
    data = path.read_bytes()
    for size in (1, 8, len(data) // 2, len(data) - 1, draw.randrange(len(data))):
        yield "cut short", path, data[:size]
    yield "emptied", path, b""
    yield "with bytes after its end", path, data + data[-9:]
    yield "filled with zeros", path, bytes(len(data))
    yield "another reference's shard under its name", path, foreign.read_bytes()
    yield "renamed", path.with_name("renamed.parquet"), data
    yield "renamed as another shard", path.with_name(foreign.name), data


def summary(flips: Flips, seconds: float) -> dict[str, Any]:
    """The summary as plain data."""
    world = flips.world
    return {
        "seed": flips.seed,
        "places_in_every_file": flips.count,
        "references": len(world.names),
        "shards": sum(len(world.files(name)) for name in world.names),
        "seconds": round(seconds, 1),
        "seen": {kind: dict(what) for kind, what in flips.seen.items()},
        "wrong": flips.wrong,
    }


def table(told: dict[str, Any]) -> str:
    """The summary as a table."""
    lines = [
        f"{told['shards']} shards of {told['references']} references, {told['places_in_every_file']} random places each"
    ]
    for kind, seen in told["seen"].items():
        lines.append(f"  {kind}")
        lines += [f"    {count:>7,}  {what}" for what, count in seen.items()]
    return "\n".join([*lines, *wrong_lines(told["wrong"])])


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=100, help="random places in every file")
    parser.add_argument("--repairs", type=int, default=12)
    given = parser.parse_args()
    began = time.monotonic()
    print(f"byte flips: seed {given.seed}, {given.count} places in every file", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("mrpo").setLevel(logging.CRITICAL)  # logged each time the cache is read
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        flips = Flips(RealCache(Path(folder)), given.seed, given.count, given.repairs)
        flips.run()
        told = summary(flips, time.monotonic() - began)
    print(table(told))
    return write_summary(given.out, "byte_flips", told, held=not told["wrong"])


if __name__ == "__main__":
    raise SystemExit(main())
