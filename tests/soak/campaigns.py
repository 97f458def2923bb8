"""Runs that are killed repeatedly: drawing and sending kills, and checking how a killed run ends."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from victims import SIGNALS, Aim, End, Victim, Victims

CLEAN = ("SIGTERM", "SIGINT")
INTERRUPTED = 130
AFTER_A_SIGNAL = "mrpo: interrupted. What was finished is kept; run the same command again to resume"
BEFORE_WORK = "mrpo: interrupted before the command began."
# Kills of one campaign. The next starts with an empty folder, so that early instants are hit often enough.
LONGEST = 8


@dataclass
class Kill:
    """One kill: by which signal, drawn how, of how many writers, at which place."""

    signal: str
    how: str
    writers: int = 1
    place: str = ""
    lost: int = 0


@dataclass
class Campaigns:
    """The kills so far and their results. Attributes: wrong: a line for each violation. ended: runs that finished before
    their kill. start: seconds of a run with nothing left to do."""

    folder: Path
    victims: Victims
    draw: random.Random
    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    campaigns: int = 0
    ended: int = 0
    start: float = 0.0

    def shares(self, count: int) -> Iterator[int]:
        """Numbers of kills of each campaign, until the total is reached: a run may finish before its kill."""
        end = len(self.kills) + count
        while (left := end - len(self.kills)) > 0:
            yield min(left, self.draw.randint(LONGEST // 2, LONGEST))

    def aimed(self, kill: Kill, places: Mapping[str, int], *, most: int, late: float) -> Aim:
        """Draw the place of a kill. Args: places: place → how often an undisturbed run reaches it. most: the latest
        occurrence to draw. late: the most seconds between the place and a kill ``beside`` it."""
        torn = kill.how == "torn"
        if torn:
            kill.signal = "SIGKILL"
        kill.place = self.draw.choice(sorted(place for place in places if not torn or is_of_a_file(place)))
        nth = self.draw.randint(1, max(1, min(places[kill.place], most)))
        return Aim(kill.place, nth, torn=torn, late=self.draw.uniform(0.0, late) if kill.how == "beside" else 0.0)

    def length(self, left: float, whole: float) -> float:
        """The seconds that a run would take now, with this share left of what takes ``whole``."""
        return self.start + left * max(whole - self.start, 0.1)

    def strike(self, victim: Victim, kill: Kill, aim: Aim | None, seconds: float) -> None:
        """Wait for the instant or the place, and kill."""
        if aim is None:
            if not victim.wait(seconds):
                victim.send(SIGNALS[kill.signal])
            return
        victim.wait(None)
        if aim.late and victim.alive:
            victim.wait(aim.late)
            victim.send(SIGNALS[kill.signal])

    def tell(self, problems: list[str], where: str) -> None:
        """Record a violation."""
        for problem in problems:
            self.wrong.append(f"{where}: {problem}")
            print(f"WRONG  {where}: {problem}", flush=True)


def is_of_a_file(label: str) -> bool:
    """Whether a place is the flush of a file and not of a folder: before it, a kill may leave the file torn."""
    return label.startswith("fsync") and "." in label.rpartition("/")[2]


def another_end(kill: Kill, end: End) -> list[str]:
    """A violation of how a run must end after its signal; after a clean end the message says how to resume."""
    if kill.signal in CLEAN:
        told = BEFORE_WORK in end.said or AFTER_A_SIGNAL in end.said
        good = end.code == INTERRUPTED and told
    else:
        good = end.code == -signal.SIGKILL
    return [] if good else [f"another end was expected: {end.said[-2500:]}"]
