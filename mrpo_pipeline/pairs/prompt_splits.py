"""Splits by prompt: all pairs of a prompt are on one side."""

import hashlib

import polars as pl

from mrpo_pipeline.errors import UserError


def split_by_prompt(frame: pl.DataFrame, fraction: float, salt: str = "eval") -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rest, held out): about `fraction` of the prompts of `frame` (column `prompt`) are held out.

    A prompt is held out if its salted hash is below the fraction, independent of order, other prompts and machine, so
    the split is stable when data is added. If a side would be empty, the prompt nearest to the threshold moves to it.
    Different salts give independent splits. Rows keep their order. `fraction` 0 holds out nothing.
    Raises UserError: the fraction is outside [0, 1), or there are fewer than two prompts.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"The held-out fraction is {fraction}; expected 0 or more and less than 1.")
    if fraction == 0:
        return frame, frame.clear()
    prompts = frame["prompt"].unique().to_list()
    if len(prompts) < 2:
        raise UserError(
            f"A held-out fraction of {fraction} needs two or more distinct prompts, because splits are by prompt; found {len(prompts)}. "
            "Use a separate file of held-out pairs, or set the fraction to 0."
        )
    places = {prompt: prompt_place(prompt, salt) for prompt in prompts}
    held_out = {prompt for prompt, place in places.items() if place < fraction}
    if not held_out:
        held_out = {min(places, key=places.__getitem__)}
    elif len(held_out) == len(places):
        held_out.remove(max(places, key=places.__getitem__))
    chosen = pl.Series("prompt", sorted(held_out), dtype=pl.String)
    mask = frame["prompt"].is_in(chosen.implode())
    return frame.filter(~mask), frame.filter(mask)


def prompt_place(prompt: str, salt: str) -> float:
    """Salted hash of a prompt in [0, 1); below the fraction, it is held out."""
    key = salt.encode("utf-8")
    digest = hashlib.blake2b(len(key).to_bytes(8, "little") + key + prompt.encode("utf-8"), digest_size=8).digest()
    # 53 bits fit a double exactly, so the result is below 1.0.
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)
