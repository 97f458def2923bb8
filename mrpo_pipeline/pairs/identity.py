"""What names a prompt, a completion and a pair: their content alone."""

import hashlib
import json
from json.encoder import encode_basestring as _string

Prompt = str | list[dict[str, str]]
"""Raw text, or messages `{"role", "content"}`."""

_MESSAGE = '{"role":%s,"content":%s}'


def dump_prompt(prompt: Prompt) -> str:
    """The canonical JSON text of a prompt: a JSON string for raw text, a JSON list for messages.

    Messages are written as `{"role", "content"}` in that order whatever the order in `prompt`; other keys are left
    out. Raw text and messages never share a canonical form.
    """
    if isinstance(prompt, str):
        return _string(prompt)
    # What json's encoder writes for such a list, in a third of the time.
    return f"[{','.join([_MESSAGE % (_string(one['role']), _string(one['content'])) for one in prompt])}]"


def parse_prompt(prompt: str) -> Prompt:
    """The prompt that `dump_prompt` wrote: a string, or a list of messages."""
    value: Prompt = json.loads(prompt)
    return value


def completion_id(prompt: str, completion: str) -> str:
    """128-bit id of one completion to one prompt, as 32 hex digits.

    `prompt` is canonical (`dump_prompt`). The id depends on the content alone: not on file, order or reference.
    It is BLAKE2b with a 16-byte digest over the parts "completion", prompt, completion, each as UTF-8 behind its length
    in bytes (unsigned 64-bit, little-endian), so no two lists of parts share an encoding.
    """
    return _digest("completion", prompt, completion)


def pair_id(prompt: str, chosen: str, rejected: str) -> str:
    """128-bit id of a pair, as `completion_id` over "pair", prompt, chosen, rejected: swapped sides differ."""
    return _digest("pair", prompt, chosen, rejected)


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
