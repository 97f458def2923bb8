"""Splits by prompt: a prompt stands on one side with all its pairs."""

import hashlib

import polars as pl

from mrpo_pipeline.errors import UserError


def split_by_prompt(frame: pl.DataFrame, fraction: float, salt: str = "eval") -> tuple[pl.DataFrame, pl.DataFrame]:
    """(rest, held out): about `fraction` of the prompts of `frame` (column `prompt`) are held out.

    A prompt is held out when its hash, salted, falls below the fraction: whatever the order, the other prompts, the
    machine. So data may grow and its old prompts stay where they were. Where that leaves a side empty (few prompts),
    the prompt nearest to the threshold changes sides, so that both have one at least. Different salts split
    independently. Rows keep their order. `fraction` 0 holds out nothing.
    Raises UserError: a fraction outside [0, 1), or fewer than two prompts to split.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"A held-out fraction of {fraction} cannot be split off; expected 0 or more and less than 1.")
    if fraction == 0:
        return frame, frame.clear()
    prompts = frame["prompt"].unique().to_list()
    if len(prompts) < 2:
        raise UserError(
            f"A held-out fraction of {fraction} cannot be split off: splits are by prompt, and the pairs hold "
            f"{len(prompts)} of them; two are needed at least. Give a separate file of held-out pairs, or set the fraction to 0."
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
    """Where a prompt falls in [0, 1): below the fraction, it is held out.

    The salt stands behind its length, so salt and prompt cannot run together.
    """
    key = salt.encode("utf-8")
    digest = hashlib.blake2b(len(key).to_bytes(8, "little") + key + prompt.encode("utf-8"), digest_size=8).digest()
    # 53 bits: a double holds them all, so 1.0 is never reached.
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)
