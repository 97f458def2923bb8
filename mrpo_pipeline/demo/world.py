"""The facts of the demo's fictional country Velmora, its units and plurals.

All are constants or follow from them by rules that do not depend on the machine, so that the demo's data are reproducible.
"""

from __future__ import annotations

COUNTRY = "Velmora"

REGIONS = ("Askar", "Brenland", "Corvin", "Dølmark", "Estria", "Falkeny", "Greshol", "Halvast")
RIVERS = ("Mirra", "Senn", "Ovelle", "Tarn", "Quill", "Brisk", "Lune", "Vörda", "Ashel", "Pern")
GOODS = (
    "glass",
    "cheese",
    "boats",
    "paper",
    "candles",
    "clocks",
    "honey",
    "carpets",
    "bells",
    "salt",
    "silk",
    "knives",
)
SEASONS = ("spring", "summer", "autumn", "winter")
TOWNS = (
    "Arbek", "Belmora", "Cindal", "Dorvik", "Elsin", "Forrow", "Galde", "Hartun", "Ilvesk", "Jorren",
    "Kalpin", "Lonmere", "Morvel", "Náros", "Orvel", "Pelk", "Quarn", "Rosmin", "Šarnik", "Torvel",
    "Umbrik", "Valdry", "Wickel", "Yarrow", "Zelin", "Ottel", "Brunnick", "Castow", "Drimm", "Eckar",
)  # fmt: skip


def _spread(choices: tuple[str, ...], step: int, shift: int) -> dict[str, str]:
    """Assign one of `choices` to every town, evenly and uncorrelated with other attributes."""
    return {
        town: choices[(index * step + shift + index // len(choices)) % len(choices)] for index, town in enumerate(TOWNS)
    }


REGION_OF = _spread(REGIONS, 3, 1)
RIVER_OF = _spread(RIVERS, 7, 4)
GOODS_OF = _spread(GOODS, 5, 2)
SEASON_OF = _spread(SEASONS, 3, 0)

REGULAR_NOUNS = (
    "apple", "bridge", "candle", "door", "engine", "finger", "garden", "hammer", "island", "jacket",
    "kettle", "lantern", "market", "needle", "orchard", "pencil", "river", "saddle", "table", "umbrella",
    "village", "window", "basket", "carpet", "drum", "farmer", "ladder", "mirror", "pillow", "ship",
    "tunnel", "wheel", "cloud", "spoon", "letter", "coat", "road", "stone", "horn", "barrel",
)  # fmt: skip
PLURAL_OF = {
    **{noun: noun + "s" for noun in REGULAR_NOUNS},
    **{
        noun: noun + "es"
        for noun in ("box", "church", "dish", "fox", "glass", "brush", "bus", "match", "bench", "dress", "branch", "tax")
    },
    **{
        noun: noun[:-1] + "ies"
        for noun in ("city", "berry", "lady", "story", "puppy", "cherry", "army", "party", "fairy", "pony", "jury", "ferry")
    },
    **{
        "leaf": "leaves", "wolf": "wolves", "knife": "knives", "shelf": "shelves", "loaf": "loaves", "calf": "calves",
        "child": "children", "foot": "feet", "goose": "geese", "mouse": "mice", "tooth": "teeth", "man": "men",
    },
}  # fmt: skip


def misspelt_plural(noun: str) -> str:
    """A wrong plural of `noun`: `-s` for an irregular one, `-es` for a regular one."""
    return noun + ("s" if PLURAL_OF[noun] != noun + "s" else "es")


# (statement, given unit, requested unit, requested units per given unit)
UNITS = (
    ("The walk to {town} takes {amount}.", "hours", "minutes", 60),
    ("The fair in {town} lasts {amount}.", "weeks", "days", 7),
    ("The ship to {town} needs {amount}.", "days", "hours", 24),
    ("The wall of {town} is {amount} high.", "metres", "centimetres", 100),
    ("The inn at {town} bought {amount} of eggs.", "dozens", "eggs", 12),
    ("The shop in {town} sold {amount} of gloves.", "pairs", "gloves", 2),
)

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """An integer from 0 to 999 in English words: 216 → "two hundred and sixteen"."""
    if not 0 <= number < 1000:
        raise ValueError(f"{number}: expected a number from 0 to 999")
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return f"{_ONES[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    if rest < 20:
        return _ONES[rest]
    tens, ones = divmod(rest, 10)
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
