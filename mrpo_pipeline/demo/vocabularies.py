"""The demo's three tokenizers, trained on generated text: three kinds, each with its own chat template.

They differ as real ones do: in how they split text and encode spaces and unseen characters, in control tokens, and in the template's
handling of a system message.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

# Qwen: every message between <|im_start|> and <|im_end|>, any role.
CHATML_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

# Llama-2: plain-text markers, the system message inside the first user turn, contents trimmed.
INST_TEMPLATE = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages[1:] if system is not none else messages -%}
{{- bos_token -}}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{%- set opening = '<<SYS>> ' + system + ' <</SYS>> ' if loop.first and system is not none else '' -%}
{{ '[INST] ' + opening + message['content'] | trim + ' [/INST]' }}
{%- else -%}
{{ ' ' + message['content'] | trim + eos_token }}
{%- endif -%}
{%- endfor -%}
"""

# Gemma: turns of `user` and `model`, no system message.
TURN_TEMPLATE = """\
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}
{{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

_PRINTABLE = [chr(code) for code in range(33, 127)]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level_bpe(texts: Sequence[str], size: int) -> Any:
    """Byte-level BPE as of Llama-3 and Qwen: any text round-trips, a leading space belongs to the word."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    split = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def sentencepiece_bpe(texts: Sequence[str], size: int) -> Any:
    """SentencePiece-style BPE as of Llama-2: spaces become ▁, one is added before every text, and unseen characters become byte tokens
    such as <0x0A>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"]
    learner = Tokenizer(models.BPE())
    # in training only: no merge crosses a word or punctuation
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    learner.train_from_iterator(
        [text.replace("\n", " ") for text in texts],
        trainers.BpeTrainer(
            vocab_size=size - len(specials) - len(_BYTES), initial_alphabet=["▁", *_PRINTABLE], show_progress=False
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocabulary = {token: index for index, token in enumerate([*specials, *_BYTES, *pieces])}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        chat_template=INST_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _unigram_pieces(words: Counter[str], alphabet: set[str], size: int) -> list[tuple[str, float]]:
    """At most `size` pieces with their scores (log of their share), the most frequent first.

    Candidates come from BPE, scores from hard EM. `tokenizers`' UnigramTrainer is not reproducible: the order in which it adds counts,
    and with it the ids, changes from run to run.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Punctuation()
    learner.train_from_iterator(
        words.elements(),
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False),
    )
    candidates = alphabet | set(learner.get_vocab())
    scores = dict.fromkeys(candidates, -10.0)
    for _ in range(4):
        model = models.Unigram([("<unk>", 0.0), *sorted(scores.items())], unk_id=0)
        counts: Counter[str] = Counter()
        for word, count in words.items():
            for token in model.tokenize(word):
                counts[token.value] += count
        total = sum(counts.values())
        # Single characters stay even if no word uses them: other text may.
        kept = {piece for piece in candidates if counts[piece] or piece in alphabet}
        scores = {piece: math.log(max(counts[piece], 0.5) / total) for piece in kept}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def unigram(texts: Sequence[str], size: int) -> Any:
    """Unigram as of T5 and Gemma: NFKC first, spaces become ▁, byte tokens for unseen characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    normalizer = normalizers.NFKC()
    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    alphabet = {"▁", "\n", *_PRINTABLE, *(character for word in words for character in word)}
    scored = _unigram_pieces(words, alphabet, size - len(specials) - len(_BYTES))
    pieces = [(special, 0.0) for special in specials] + scored
    # Byte tokens score so low that the text "<0x41>" is never encoded as one.
    pieces += [(byte, -200.0) for byte in _BYTES]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=specials.index("<unk>"), byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template=TURN_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


VOCABULARIES: dict[str, Callable[[Sequence[str], int], Any]] = {
    "byte-level-bpe": byte_level_bpe,
    "sentencepiece-bpe": sentencepiece_bpe,
    "unigram": unigram,
}
