"""Tiny real tokenizers of the common kinds, trained on the spot, with chat templates like the real ones.

`KINDS` maps a name to a builder; each builder takes `chat_template=` and returns a Hugging Face fast tokenizer. Builds are
memoised; a test that changes a tokenizer must copy it (`copy.deepcopy`).
"""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "The quick brown fox jumps over the lazy dog. How are you today? I am fine, thank you!",
    "Write a short story about a lighthouse keeper who finds a bottle, and the letter in it.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\t# 3\r\n",
    "Naïve café, coöperate, Zürich; e\u0301clair, n\u0303o. ½ cup, ﬁne ﬂour, Ｆｕｌｌ ｗｉｄｔｈ.",
    "日本語のテキスト。中文文本也在这里。한국어 문장.",
    "Family 👨‍👩‍👧‍👦, flags 🇩🇪🇯🇵, party 🎉🎉, thumbs 👍🏽 and hearts ❤️.",
    "User: question\nAssistant: answer\n\n### Instruction: system <|im_start|>user [INST] text [/INST] </s>",
] * 3

GPT2_SPLIT = ""  # ByteLevel's own
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}"
    "{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for message in messages %}{% set content = message.content %}"
    "{% if message.role != 'assistant' %}{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}"
    "{% else %}{% set reasoning_content = '' %}"
    "{% if '</think>' in content %}"
    "{% set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.last %}{{ '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') "
    "+ '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{% else %}{{ '<|im_start|>' + message.role + '\\n' + content }}{% endif %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def special(content: str, **flags: bool) -> AddedToken:
    return AddedToken(content, special=True, normalized=False, **flags)


def wrap(backend: Tokenizer, **names: str | None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def byte_level(
    split: str,
    specials: Sequence[AddedToken],
    *,
    normalizer: object = None,
    plain: Sequence[str] = (),
    add_prefix_space: bool = False,
) -> Tokenizer:
    """Byte-level BPE with control tokens after the vocabulary, and `plain` added tokens that are not special."""
    backend = Tokenizer(models.BPE(ignore_merges=split == LLAMA3_SPLIT))
    backend.normalizer = normalizer
    backend.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
        if split == GPT2_SPLIT
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
            ]
        )
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=sorted(alphabet), show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(specials))
    backend.add_tokens([AddedToken(content, special=False, normalized=False) for content in plain])
    return backend


def sentencepiece_bpe(prefix: str, specials: Sequence[AddedToken]) -> Tokenizer:
    """SentencePiece-like BPE with byte fallback; `prefix` is `legacy` (normaliser) or a Metaspace prepend scheme."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    ascii_text = ["".join(char for char in text if char.isascii() and char.isprintable()) for text in TEXT]
    trained.train_from_iterator(ascii_text, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    for piece in model["vocab"]:
        vocab.setdefault(piece, len(vocab))
    backend = Tokenizer(
        models.BPE(
            vocab, [tuple(merge) for merge in model["merges"]], byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    if prefix == "legacy":
        backend.normalizer = trained.normalizer
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    backend.decoder = fallback_decoder(leading_space=True)
    backend.add_special_tokens(list(specials))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return backend


def fallback_decoder(leading_space: bool) -> object:
    """Pieces and byte tokens back to text, without the prefix space that the tokenizer adds."""
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if leading_space else parts)


def unigram(normalizer: object, pre_tokenizer: object, specials: Sequence[AddedToken], *, fallback: bool) -> Tokenizer:
    """Unigram whose control pieces are in the vocabulary with the best score, as in SentencePiece's conversion."""
    trained = Tokenizer(models.Unigram())
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(TEXT, trainers.UnigramTrainer(vocab_size=350, show_progress=False))
    pieces = [(str(token), 0.0) for token in specials] + [("<unk>", 0.0)]
    if fallback:
        pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    known = {piece for piece, _ in pieces}
    pieces += [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"] if piece not in known]
    pieces += [("▁", -8.0)] if "▁" not in {piece for piece, _ in pieces} else []
    backend = Tokenizer(models.Unigram(pieces, unk_id=len(specials), byte_fallback=fallback))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    backend.decoder = fallback_decoder(leading_space=pre_tokenizer is not None)
    backend.add_special_tokens([*specials, special("<unk>")])
    return backend


@lru_cache
def gpt2(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """No BOS, one control token for everything, GPT-2's splits."""
    return _with(wrap(byte_level(GPT2_SPLIT, [special("<|endoftext|>")]), eos_token="<|endoftext|>"), chat_template)


@lru_cache
def llama3(chat_template: str | None = LLAMA3) -> PreTrainedTokenizerFast:
    """BOS added by the post-processor and by the template."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = byte_level(LLAMA3_SPLIT, [special(name) for name in names])
    first = backend.token_to_id(names[0])
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{names[0]} $A", special_tokens=[(names[0], first)]),
        ]
    )
    return _with(wrap(backend, bos_token=names[0], eos_token="<|eot_id|>"), chat_template)


@lru_cache
def qwen(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """NFC, control tokens after the vocabulary, `<think>` added but not special."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = byte_level(
        LLAMA3_SPLIT, [special(n) for n in names], normalizer=normalizers.NFC(), plain=["<think>", "</think>"]
    )
    return _with(wrap(backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"), chat_template)


@lru_cache
def prefixed_gpt2(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level with a space before every section of text."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = byte_level(GPT2_SPLIT, [special(n) for n in names], add_prefix_space=True)
    return _with(wrap(backend, eos_token="<|endoftext|>"), chat_template)


@lru_cache
def phi3(chat_template: str | None = PHI3) -> PreTrainedTokenizerFast:
    """Control tokens that absorb white space after them; the end of a turn is not marked special."""
    names = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
    strips = [special(n, rstrip=True) for n in ("<|assistant|>", "<|user|>", "<|system|>")]
    backend = sentencepiece_bpe("first", [*map(special, names), *strips])
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    backend.add_tokens([AddedToken("<|end|>", special=False, normalized=False, rstrip=True)])
    return _with(wrap(backend, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>"), chat_template)


@lru_cache
def llama2(chat_template: str | None = LLAMA2) -> PreTrainedTokenizerFast:
    """SentencePiece BPE with byte fallback, the prefix space from the normaliser."""
    backend = sentencepiece_bpe("legacy", [special("<unk>"), special("<s>"), special("</s>")])
    return _with(wrap(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"), chat_template)


@lru_cache
def mistral(chat_template: str | None = MISTRAL) -> PreTrainedTokenizerFast:
    """SentencePiece BPE with byte fallback, the prefix space only at the very start."""
    backend = sentencepiece_bpe("first", [special("<unk>"), special("<s>"), special("</s>")])
    return _with(wrap(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"), chat_template)


@lru_cache
def metaspace_always(chat_template: str | None = LLAMA2) -> PreTrainedTokenizerFast:
    """SentencePiece BPE with byte fallback, a prefix space before every section of text."""
    backend = sentencepiece_bpe("always", [special("<unk>"), special("<s>"), special("</s>")])
    return _with(wrap(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"), chat_template)


@lru_cache
def t5(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Unigram without byte fallback, NFKC, a prefix space everywhere, EOS added by the post-processor."""
    specials = [special("<pad>"), special("</s>")]
    backend = unigram(normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="always"), specials, fallback=False)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return _with(wrap(backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"), chat_template)


@lru_cache
def gemma(chat_template: str | None = GEMMA) -> PreTrainedTokenizerFast:
    """Unigram with byte fallback, no prefix space, NFKC, newlines among the added tokens that are not special."""
    names = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    backend = unigram(normalizer, None, [special(name) for name in names], fallback=True)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("\n", "\n\n", "▁▁")])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names_of = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _with(wrap(backend, **names_of), chat_template)


def _with(tokenizer: PreTrainedTokenizerFast, chat_template: str | None) -> PreTrainedTokenizerFast:
    tokenizer.chat_template = chat_template
    return tokenizer


KINDS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "gpt2": gpt2,
    "llama3": llama3,
    "qwen": qwen,
    "prefixed_gpt2": prefixed_gpt2,
    "phi3": phi3,
    "llama2": llama2,
    "mistral": mistral,
    "metaspace_always": metaspace_always,
    "t5": t5,
    "gemma": gemma,
}
