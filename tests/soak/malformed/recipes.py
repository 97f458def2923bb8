"""Invalid recipes: invalid YAML, hostile YAML, meaningless keys and values."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import yaml

from malformed.case import Case, Place, lines, without

RECIPE = ("audit", "recipe.yaml")

# A misspelt key at every level, and the valid one that the message must suggest.
MISSPELT = {
    "pairz": "pairs", "polcy": "policy", "reference": "references", "cachee": "cache", "limit": "limits",
    "score": "scoring", "methods": "method", "train": "training", "outputdir": "output_dir", "compares": "compare",
    "evaluations": "evaluation", "pairs.trian": "train", "pairs.eval_fractoin": "eval_fraction",
    "pairs.string": "strings", "pairs.on_bad_rows": "on_bad_row", "pairs.column": "columns", "policy.modle": "model",
    "policy.lora.rank": "r", "policy.lora.aplha": "alpha", "policy.lora.target_module": "target_modules",
    "policy.adaptor": "adapter", "policy.check_anker": "check_anchor", "references.base.modle": "model",
    "references.base.revison": "revision", "references.base.dtyp": "dtype", "references.base.quantisation": "quantization",
    "references.other.templat": "template", "limits.max_lenght": "max_length", "limits.max_prompt_len": "max_prompt_length",
    "method.bet": "beta", "method.aggregat": "aggregate", "method.weight": "weights", "method.los": "loss",
    "method.trust_region.kinds": "kind", "method.trust_region.eps": "epsilon", "method.weights_options.flor": "floor",
    "method.weights_options.temp": "temperature", "method.simpo_gama": "simpo_gamma",
    "method.label_smooth": "label_smoothing", "method.modpo.help.weigth": "weight", "training.learning_rat": "learning_rate",
    "training.num_epochs": "num_train_epochs", "training.batch_size": "nearest", "training.output_dir": "output_dir",
    "evaluation.sample": "samples", "evaluation.max_tokens": "max_new_tokens", "compare.seed": "seeds",
    "compare.method": "methods", "compare.sweep.betas": "beta", "compare.metrics": "metric",
    "compare.methods.a.bet": "beta",
}  # fmt: skip

# Invalid values of a key. The message names the key.
WRONG: dict[str, list[Any]] = {
    "pairs": [7, "pairs.jsonl", [1], None, True],
    "pairs.train": [7, {"a": 1}, [1, 2], True, ""],
    "pairs.eval": [1.5, {"file": "x"}],
    "pairs.eval_fraction": [-0.1, 1.0, 2, "half", [0.1], float("nan"), float("inf"), 10**400],
    "pairs.weights_fraction": [-1, 1.0, "x", float("nan")],
    "pairs.columns": [["prompt"], {"prompts": "x"}, {"prompt": 7}, "prompt"],
    "pairs.strings": ["chat", 1, None, ["text"]],
    "pairs.on_bad_row": ["ignore", False],
    "policy": ["model", [1], 7],
    "policy.model": [None, 7, ["a"], {"name": "x"}, ""],
    "policy.lora": [16, "all", [8]],
    "policy.lora.r": [0, -1, 1.5, "eight", None, [8]],
    "policy.lora.alpha": [0, -16, "x", float("nan"), float("inf")],
    "policy.lora.dropout": [-0.1, 1.0, 1.5, "x", float("nan")],
    "policy.lora.target_modules": [7, {"q": 1}, [1], []],
    "policy.lora.use_dora": ["perhaps", 7],
    "policy.check_anchor": ["perhaps", 7, []],
    "policy.trust_remote_code": ["of course", 2, [True]],
    "policy.dtype": [16, "float13", ["float32"]],
    "policy.quantization": [4, ["nf4"], "nf5"],
    "references": [["base"], "base", 7, {}, None],
    "references.base": ["model", None, 7, ["a"]],
    "references.base.model": [None, 7, [], ""],
    "references.base.revision": [7.5, ["main"]],
    "references.base.scoring": ["vllm", 3, ["a"]],
    "references.base.dtype": [32, "float8000"],
    "cache": [7, None, ["a"], {"dir": "x"}, "", True],
    "limits": [512, "long", [1]],
    "limits.max_length": [0, 1, -5, 3.5, "long", [512], float("inf"), float("nan"), True],
    "limits.max_prompt_length": [0, -1, 2.5, "x", 64, 65],
    "scoring": ["vllm", [1], 7],
    "scoring.engine": ["tensorflow", 7, None, ["vllm"]],
    "scoring.runtime": ["kubernetes", 1],
    "scoring.workers": [0, -2, 1.5, "many"],
    "scoring.unit": [0, -1, "x", None],
    "scoring.check": [-1, "all", 0.5],
    "scoring.rows_per_shard": [0, -1, "x"],
    "scoring.seconds_per_shard": [0, -1, "x", float("nan")],
    "method": ["mrpo", 7, [1]],
    "method.name": ["ppo", 7, None, ["dpo"]],
    "method.aggregate": ["mean", "single:", 7, None, "single:nobody"],
    "method.aggregate_over": ["token", 1, None, ["span"]],
    "method.weights": [7, {"base": 1}, {"column": "domain"}, {"column": "domain", "code": "nobody"}, {"code": "base"}, {"column": 7},
                       {"column": "domain", "other": None}, ["a", "b"], [0.5], [0.2, 0.3, 0.5], [-0.5, 1.5], [0, 0], "best", [],
                       [float("nan"), 1.0], [float("inf"), 0.0], "0.5,0.5"],
    "method.weights_options": ["x", 3],
    "method.weights_options.floor": [-0.1, 1.0, 0.9, "x", float("nan")],
    "method.weights_options.temperature": [0, -1, "x", float("nan"), float("inf")],
    "method.trust_region": ["off", 0.1],
    "method.trust_region.kind": ["soft", 7],
    "method.trust_region.epsilon": [-0.1, "x", 1.5, float("nan"), float("inf")],
    "method.compatibility": ["trl", 1],
    "method.normalize": ["word", 0],
    "method.beta": [0, -0.1, "x", None, [0.1], float("nan"), float("inf"), 10**400],
    "method.loss": ["mse", 1, ["sigmoid"], {"mse": 1}, {"sigmoid": -1}, {"sigmoid": "x"}, {"bco": 1, "bco_pair": 1}],
    "method.label_smoothing": [-0.1, 0.5, 1, "x", float("nan")],
    "method.sft_weight": [-1, "x", float("nan"), float("inf")],
    "method.discopop_tau": [0, "x", float("nan")],
    "method.f_divergence_type": ["kl", 1],
    "method.modpo": ["x", {"help": 1}, {"help": {"weight": 1.5}}, {"help": {}}],
    "training": ["fast", [1], 7],
    "training.learning_rate": ["fast", [1], float("nan"), -1],
    "training.max_steps": ["x", 1.5, [1]],
    "training.per_device_train_batch_size": [0, -2, "x", 1.5],
    "training.gradient_accumulation_steps": [0, -4, "x"],
    "training.num_train_epochs": ["x", [1], -1.0],
    "training.seed": ["x", 1.5, -1, 2**70],
    "training.lr_scheduler_type": ["wavy", 7],
    "training.save_strategy": ["sometimes"],
    "training.eval_strategy": ["sometimes", "steps_and_more"],
    "training.report_to": [7, "newspaper"],
    "training.optim": ["adamx", 7],
    "training.warmup_steps": ["x", -5],
    "training.weight_decay": ["x"],
    "training.logging_steps": ["x", -1],
    "evaluation": ["x", 3],
    "evaluation.samples": [-1, "x", 1.5],
    "evaluation.max_new_tokens": [0, -1],
    "evaluation.tasks": [7, [1], {"a": 1}],
    "compare": ["x", [1]],
    "compare.methods": [["dpo"], "dpo", {"a": 7}, {"a": {"beta": -1}}, {"a": {"name": "ppo"}}],
    "compare.seeds": [[], 7, "0", [0, 0], ["a"], [1.5], [-1], [2**70]],
    "compare.metric": ["bleu", 7],
    "compare.processes": [0, -1, "many", 1.5],
    "compare.sweep": ["x", {"beta": "x"}, {"beta": [-0.1]}, {"beta": [0]}, {"epsilon": [-1]}, {"temperature": [0]}],
    "output_dir": [7, None, ["a"], ""],
}  # fmt: skip

COMMANDS = {
    "training": "train", "policy": "train", "method": "train", "compare": "compare", "scoring": "score-refs",
    "output_dir": "train", "evaluation": "evaluate",
}  # fmt: skip

# Text of a recipe, and what the message names besides the file.
NO_YAML: dict[str, tuple[str, str]] = {
    "tab for indentation": ("pairs:\n\ttrain: a.jsonl\n", "line 2"),
    "unclosed bracket": ("pairs: {train: [a, b\n", "line"),
    "unclosed quote": ('pairs: {train: "a.jsonl}\n', "line"),
    "two colons": ("pairs: train: a.jsonl\n", "line 1"),
    "bad indentation": ("pairs:\n  train: a\n eval: b\n", "line 3"),
    "two documents": ("pairs: {train: a}\n---\npairs: {train: b}\n", "recipe.yaml"),
    "key twice": ("cache: a\ncache: b\n", "'cache' is given twice"),
    "key twice below": ("method:\n  beta: 0.1\n  beta: 0.2\n", "'beta' is given twice"),
    "key twice in another form": ("method: {beta: 0.1}\n'method': {beta: 0.2}\n", "'method' is given twice"),
    "reference twice": ("references:\n  base: {model: a}\n  base: {model: b}\n", "'base' is given twice"),
    "alias": ("references:\n  base: &b {model: x}\n  other: *b\n", "*b"),
    "merge key": ("a: &a {model: x}\npolicy: {<<: *a}\n", "*a"),
    "recursive alias": ("pairs: &p [*p]\n", "*p"),
    "recursive map": ("pairs: &p {train: *p}\n", "*p"),
    "alias of nothing": ("cache: *nobody\n", "nobody"),
    "python object": ("cache: !!python/object/apply:os.system ['touch gotcha']\n", "python/object"),
    "python object new": ("cache: !!python/object/new:os.system ['touch gotcha']\n", "python/object"),
    "python name": ("cache: !!python/name:os.system\n", "python/name"),
    "python module": ("cache: !!python/module:os\n", "python/module"),
    "python tuple": ("method: {weights: !!python/tuple [1, 2]}\n", "python/tuple"),
    "own tag": ("cache: !Thing x\n", "!Thing"),
    "binary": ("cache: !!binary aGVsbG8=\n", "binary"),
    "binary that is none": ("cache: !!binary '***'\n", "recipe.yaml"),
    "set": ("cache: !!set {a, b}\n", "set"),
    "timestamp that is none": ("cache: !!timestamp yesterday\n", "recipe.yaml"),
    "int that is none": ("method: {beta: !!int hello}\n", "recipe.yaml"),
    "float that is none": ("method: {beta: !!float hello}\n", "recipe.yaml"),
    "bool that is none": ("method: {beta: !!bool hello}\n", "recipe.yaml"),
    "a list": ("- pairs\n- policy\n", "list"),
    "a number": ("42\n", "int"),
    "a word": ("hello\n", "str"),
    "true": ("yes\n", "bool"),
    "a date": ("2024-07-26\n", "recipe.yaml"),
    "empty": ("", "recipe.yaml"),
    "null": ("null\n", "recipe.yaml"),
    "comments only": ("# nothing here\n", "recipe.yaml"),
    "white space only": (" \n \n", "recipe.yaml"),
    "number as key": ("1: 2\n", "1"),
    "null as key": ("null: 2\n", "None"),
    "list as key": ("? [a, b]\n: 2\n", "recipe.yaml"),
    "map as key": ("? {a: b}\n: 2\n", "recipe.yaml"),
    "number as reference": ("references: {1: {model: a}}\n", "references"),
    "null as reference": ("references: {null: {model: a}}\n", "references"),
    "bool as reference": ("references: {no: {model: a}}\n", "references"),
    "float as a pair's column": ("pairs: {columns: {1.5: a}}\n", "pairs.columns"),
    "number as training key": ("training: {7: a}\n", "training.7"),
    "number below compare": ("compare: {methods: {1: {beta: 0.1}}}\n", "compare.methods"),
    "JSON with a comma too many": ('{"pairs": {"train": "a",,}}', "recipe.yaml"),
    "Python": ("import os\nos.system('touch gotcha')\n", "recipe.yaml"),
    "TOML": ("[pairs]\ntrain = 'a'\n", "recipe.yaml"),
    "HTML": ("<html><body>404 Not Found</body></html>\n", "recipe.yaml"),
    "merge conflict": ("<<<<<<< HEAD\ncache: a\n=======\ncache: b\n>>>>>>> other\n", "recipe.yaml"),
    "Git LFS pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n", "recipe.yaml"),
    "CSV": ("prompt,chosen,rejected\na,b,c\n", "recipe.yaml"),
    "directive": ("%YAML 9.9\n---\ncache: a\n", "recipe.yaml"),
    "percent": ("%%%\n", "recipe.yaml"),
    "at sign": ("cache: @home\n", "recipe.yaml"),
    "backtick": ("cache: `pwd`\n", "recipe.yaml"),
    "template left in": ("cache: {{ cache }}\n", "recipe.yaml"),
    "control character": ("cache: a\x07b\n", "recipe.yaml"),
    "NUL": ("cache: a\0b\n", "recipe.yaml"),
    "NULs only": ("\0" * 4096, "recipe.yaml"),
    "escape for a NUL": ('cache: "a\\0b"\npairs: {train: x}\n', "cache"),
    "escape for a surrogate": ('cache: "\\ud800"\n', "recipe.yaml"),
    "unknown escape": ('cache: "\\q"\n', "recipe.yaml"),
    "terminal's escape": ('"\\e[31mcache": a\n', "recipe.yaml"),
    "a million braces": ("{" * 1_000_000, "recipe.yaml"),
    "100,000 lists": ("a: " + "[" * 100_000 + "]" * 100_000 + "\n", "recipe.yaml"),
    "100,000 maps": ("a: " + "{a: " * 100_000 + "}" * 100_000 + "\n", "recipe.yaml"),
    "1,000 lists": ("pairs: " + "[" * 1000 + "]" * 1000 + "\n", "recipe.yaml"),
    "deep indentation": ("".join(" " * i + "a:\n" for i in range(1200)), "recipe.yaml"),
    "a number of 5,000 digits": ("method: {beta: " + "9" * 5000 + "}\n", "recipe.yaml"),
    "a float of 5,000 digits": ("method: {beta: 0." + "9" * 5000 + "e999999999}\n", "method.beta"),
    "a seed of 100,000 digits": ("training: {seed: " + "1" * 100_000 + "}\n", "recipe.yaml"),
    "octal": ("training: {seed: 0o9}\n", "training.seed"),
    "a seed in 100,000 hexadecimal digits": ("training: {seed: 0x" + "f" * 100_000 + "}\n", "training.seed"),
    "a length in 100,000 hexadecimal digits": ("limits: {max_length: 0x" + "f" * 100_000 + "}\n", "limits"),
    "a reference in hexadecimal": ("references: {0x" + "f" * 9999 + ": {model: a}}\n", "references"),
    "a key of 500 KB": ("k" * 500_000 + ": 1\n", "recipe.yaml"),
    "a value of 500 KB": ("method: {name: " + "v" * 500_000 + "}\n", "method.name"),
    "20,000 keys": ("".join(f"key{i}: {i}\n" for i in range(20_000)), "recipe.yaml"),
    "20,000 references": ("references:\n" + "".join(f"  r{i}: {{modl: a}}\n" for i in range(20_000)), "modl"),
    "100,000 anchors": ("pairs:\n" + "".join(f"  - &a{i} x\n" for i in range(50_000)), "pairs"),
    "right to left": ("\u202ecache: a\n", "recipe.yaml"),
    "a look-alike of a key": ("сache: a\n", "cache"),  # the first letter is Cyrillic
    "full-width colon": ("cache： a\n", "recipe.yaml"),
    "no-break space": ("method:\u00a0{beta: 1}\n", "recipe.yaml"),
}  # fmt: skip

RAW: dict[str, tuple[bytes, str]] = {
    "Latin-1": ("cache: caché\n".encode("latin-1"), "recipe.yaml"),
    "UTF-16": ("cache: a\n".encode("utf-16"), "recipe.yaml"),
    "UTF-16 without a mark": ("cache: a\n".encode("utf-16-le"), "recipe.yaml"),
    "UTF-32": ("cache: a\n".encode("utf-32"), "recipe.yaml"),
    "random bytes": (random.Random(0).randbytes(10_000), "recipe.yaml"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "recipe.yaml"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(100), "recipe.yaml"),
    "a pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.", "recipe.yaml"),
    "Parquet": (b"PAR1" + bytes(64) + b"PAR1", "recipe.yaml"),
    "a lone continuation byte": (b"cache: a\x80\n", "recipe.yaml"),
    "an overlong slash": (b"cache: ..\xc0\xaf\n", "recipe.yaml"),
    "an encoded surrogate": (b"cache: \xed\xa0\x80\n", "recipe.yaml"),
    "bytes behind the end of Unicode": (b"cache: \xf4\x90\x80\x80\n", "recipe.yaml"),
}

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)

# Command lines, and what the message names.
OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "beta is a word": (("train", "recipe.yaml", "--beta", "hot"), "--beta"),
    "beta is nothing": (("train", "recipe.yaml", "--beta"), "--beta"),
    "beta is negative": (("train", "recipe.yaml", "--beta=-1"), "method.beta"),
    "beta is NaN": (("train", "recipe.yaml", "--beta", "nan"), "method.beta"),
    "beta is infinite": (("train", "recipe.yaml", "--beta", "inf"), "method.beta"),
    "unknown option": (("train", "recipe.yaml", "--betta", "1"), "--betta"),
    "unknown command": (("trian", "recipe.yaml"), "trian"),
    "two recipes": (("train", "recipe.yaml", "recipe.yaml"), "recipe.yaml"),
    "no such recipe": (("train", "missing.yaml"), "missing.yaml"),
    "no such shipped recipe": (("train", "smal"), "smal"),
    "no recipe and no options": (("train",), "policy"),
    "set without a value": (("train", "recipe.yaml", "--set", "method.beta"), "--set"),
    "set without a key": (("train", "recipe.yaml", "--set", "=3"), "--set"),
    "set of an unknown key": (("train", "recipe.yaml", "--set", "method.bet=3"), "beta"),
    "set below a value": (("train", "recipe.yaml", "--set", "method.beta.x=3"), "method.beta"),
    "set of dots": (("train", "recipe.yaml", "--set", "...=3"), "recipe.yaml"),
    "set of a trailing dot": (("train", "recipe.yaml", "--set", "method.=3"), "method."),
    "set of 10,000 levels": (("train", "recipe.yaml", "--set", "a" + ".a" * 10_000 + "=3"), "a"),
    "set of a wrong type": (("train", "recipe.yaml", "--set", "method.trust_region.kind=[1]"), "method.trust_region.kind"),
    "set of YAML that is none": (("train", "recipe.yaml", "--set", "method.beta=[1,"), "method.beta"),
    "set of a Python object": (("train", "recipe.yaml", "--set", "limits=!!python/object/apply:os.system ['touch gotcha']"), "limits"),
    "set of an alias": (("train", "recipe.yaml", "--set", "limits=*a"), "limits"),
    "set of a bomb": (("train", "recipe.yaml", "--set", "limits={" + BOMB.replace("\n", ", ")[:-2] + "}"), "limits"),
    "set of 100,000 brackets": (("train", "recipe.yaml", "--set", "limits=" + "[" * 100_000), "limits"),
    "set of 100 KB": (("train", "recipe.yaml", "--set", "method.name=" + "x" * 100_000), "method.name"),
    "set of a control character": (("train", "recipe.yaml", "--set", "method.name=\x1b[31mred"), "method.name"),
    "reference without a model": (("audit", "recipe.yaml", "--reference", "base"), "--reference"),
    "reference without a name": (("audit", "recipe.yaml", "--reference", "=x"), "--reference"),
    "reference with a dot": (("audit", "recipe.yaml", "--reference", "a.b=x"), "a.b"),
    "weights are words": (("train", "recipe.yaml", "--weights", "a,b"), "method.weights"),
    "weights are too many": (("train", "recipe.yaml", "--weights", "0.2,0.3,0.5"), "weights"),
    "weights are cut short": (("train", "recipe.yaml", "--weights", "0.5,"), "method.weights"),
    "seeds are words": (("compare", "recipe.yaml", "--seeds", "a,b"), "seeds"),
    "seeds are none": (("compare", "recipe.yaml", "--seeds", ""), "seeds"),
    "seeds are equal": (("compare", "recipe.yaml", "--seeds", "1,1"), "seeds"),
    "processes are none": (("compare", "recipe.yaml", "--processes", "0"), "processes"),
    "gpus are none": (("plan", "recipe.yaml", "--gpus", "0"), "gpus"),
    "gpus are fewer than none": (("plan", "recipe.yaml", "--gpus=-3"), "gpus"),
    "efficiency beyond one": (("plan", "recipe.yaml", "--efficiency", "3"), "efficiency"),
    "efficiency is nothing": (("plan", "recipe.yaml", "--efficiency", "0"), "efficiency"),
    "efficiency is NaN": (("plan", "recipe.yaml", "--efficiency", "nan"), "efficiency"),
    "unknown GPU": (("plan", "recipe.yaml", "--gpu", "voodoo2"), "voodoo2"),
    "only an unknown reference": (("score-refs", "recipe.yaml", "--only", "nobody"), "nobody"),
    "an unknown split": (("targets", "recipe.yaml", "--split", "middle"), "middle"),
    "an unknown trainer": (("targets", "recipe.yaml", "--for", "keras"), "keras"),
    "output below a file": (("targets", "recipe.yaml", "--output", "recipe.yaml/t.parquet"), "recipe.yaml"),
    "output onto a folder": (("targets", "recipe.yaml", "--output", "cache"), "cache"),
    "a limit that is negative": (("cache", "verify", "recipe.yaml", "--limit=-1"), "--limit"),
    "a check that is negative": (("cache", "verify", "recipe.yaml", "--check=-1"), "--check"),
    "a cache that is not there": (("cache", "stats", "--cache", "nowhere"), "nowhere"),
    "a cached reference that is not there": (("cache", "stats", "--cache", "cache", "--reference", "nobody"), "nobody"),
    "all of no reference": (("cache", "prune", "--cache", "cache", "--all"), "--all"),
    "a shipped recipe of no such name": (("recipes", "copy", "gigantic"), "gigantic"),
    "a recipe copied onto one": (("recipes", "copy", "small", "recipe.yaml"), "recipe.yaml"),
    "a recipe copied into no folder": (("recipes", "copy", "small", "no/such/x.yaml"), "no/such"),
    "merge of nothing": (("merge", "nowhere", "--output", "m"), "nowhere"),
    "report of nothing": (("report", "nowhere"), "nowhere"),
    "evaluate nothing": (("evaluate", "recipe.yaml", "--adapter", "nowhere"), "nowhere"),
    "resume from nothing": (("train", "recipe.yaml", "--resume", "--output-dir", "recipe.yaml"), "recipe.yaml"),
}  # fmt: skip


def cases(seed: int) -> list[Case]:
    """All of them; random ones are drawn from the seed."""
    found = [_misspelt(key, valid) for key, valid in MISSPELT.items()]
    for key, values in WRONG.items():
        found += [_wrong(key, value, number) for number, value in enumerate(values)]
    found += [_missing(key) for key in ("policy.model", "references.base.model", "references", "pairs.train", "policy")]
    found += [
        Case(name, _file(text), RECIPE, (named,), started=name in ("tab for indentation", "python object", "NUL"))
        for name, (text, named) in NO_YAML.items()
    ]
    found += [Case(name, _file(data), RECIPE, (named,)) for name, (data, named) in RAW.items()]
    found += [
        Case(f"option: {name}", _good, command, (named,), started=name in ("beta is a word", "set of a bomb"))
        for name, (command, named) in OPTIONS.items()
    ]
    return found + _places() + _random(seed)


def _good(place: Place) -> None:
    place.cache()
    place.recipe()


def _file(data: str | bytes) -> Callable[[Place], object]:
    return lambda place: place.write("recipe.yaml", data)


def _changed(key: str, value: Any) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        place.cache()
        place.recipe({key: value})

    return make


def _misspelt(key: str, valid: str) -> Case:
    command = ("compare", "recipe.yaml") if key.startswith("compare.methods") else RECIPE
    return Case(f"misspelt {key}", _changed(key, 1), command, (key.rpartition(".")[2], valid))


def _wrong(key: str, value: Any, number: int) -> Case:
    command = COMMANDS.get(key.split(".")[0], "audit")
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:20]}…"
    return Case(f"{key} is {shown}", _changed(key, value), (command, "recipe.yaml"), (key.rpartition(".")[2],))


def _missing(key: str) -> Case:
    def make(place: Place) -> None:
        place.cache()
        place.write("recipe.yaml", yaml.safe_dump(without(place.document(), key), sort_keys=False))

    return Case(f"without {key}", make, ("train", "recipe.yaml"), (key.split(".")[0].rstrip("s"),))


def _places() -> list[Case]:
    """The recipe is not a file, or one that must not be read completely."""

    def folder(place: Place) -> None:
        (place.here / "recipe.yaml").mkdir()

    def fifo(place: Place) -> None:
        os.mkfifo(place.here / "recipe.yaml")

    def big(place: Place) -> None:
        with open(place.here / "recipe.yaml", "wb") as file:
            for _ in range(100):
                file.write(b"# " + b"x" * ((1 << 20) - 3) + b"\n")

    def sparse(place: Place) -> None:
        with open(place.here / "recipe.yaml", "wb") as file:
            file.truncate(100 << 30)

    def link(target: str) -> Callable[[Place], None]:
        return lambda place: (place.here / "recipe.yaml").symlink_to(target)

    def option(place: Place) -> None:
        place.recipe({"scoring.max_batch_tokenz": 7})

    def handwritten(place: Place) -> None:
        place.cache()
        path = place.recipe()
        path.write_text("# mine\n" + path.read_text(encoding="utf-8"), encoding="utf-8")

    def model(place: Place) -> None:
        _good(place)
        place.model()

    def own_pairs(place: Place) -> None:
        place.cache()
        place.write("own.jsonl", lines(place.rows()))
        place.recipe({"pairs.train": "own.jsonl"})

    return [
        Case("misspelt option of the engine", option, ("score-refs", "recipe.yaml"), ("max_batch_tokenz",)),
        Case("output over a recipe", handwritten, ("train", "recipe.yaml", "--output-dir", "."), ("recipe.yaml",)),
        Case("output over a model", model, ("train", "recipe.yaml", "--output-dir", "model"), ("model",)),
        Case("output into the cache", _good, ("train", "recipe.yaml", "--output-dir", "cache"), ("cache",)),
        Case("output below the cache", _good, ("train", "recipe.yaml", "--output-dir", "cache/base/x"), ("cache",)),
        Case("comparison into the cache", _good, ("compare", "recipe.yaml", "--output-dir", "cache/base"), ("cache",)),
        Case("output below a recipe", _good, ("train", "recipe.yaml", "--output-dir", "recipe.yaml/a/b"), ("recipe.yaml",)),
        Case("output of a long name", _good, ("train", "recipe.yaml", "--output-dir", "o" * 400), ("output_dir",)),
        Case("output onto the device of nothing", _good, ("train", "recipe.yaml", "--output-dir", "/dev/null"), ("/dev/null",)),
        Case("targets over the pairs", own_pairs, ("targets", "recipe.yaml", "--output", "own.jsonl"), ("own.jsonl",)),
        Case("a folder", folder, RECIPE, ("recipe.yaml",)),
        Case("a FIFO", fifo, RECIPE, ("recipe.yaml",), started=True),
        Case("100 MB of comments", big, RECIPE, ("recipe.yaml",)),
        Case("a hole of 100 GB", sparse, RECIPE, ("recipe.yaml",)),
        Case("a broken link", link("nowhere.yaml"), RECIPE, ("recipe.yaml",)),
        Case("a link to itself", link("recipe.yaml"), RECIPE, ("recipe.yaml",)),
        Case("/dev/zero", link("/dev/zero"), RECIPE, ("recipe.yaml",)),
        Case("/dev/zero by name", _good, ("audit", "/dev/zero"), ("/dev/zero",)),
        Case("/dev/null by name", _good, ("audit", "/dev/null"), ("/dev/null",)),
        Case("/proc/self/mem", _good, ("audit", "/proc/self/mem"), ("/proc/self/mem",)),
        Case("a name of 5,000 characters", _good, ("audit", "x" * 5000), ("xxx",)),
        Case("a name below a file", _good, ("audit", "recipe.yaml/recipe.yaml"), ("recipe.yaml/recipe.yaml",)),
        Case("billion laughs", _file(BOMB), RECIPE, ("recipe.yaml",), started=True),
        Case("billion laughs as merge keys", _file(BOMB.replace("[x", "{<<: x").replace("x]", "x}")), RECIPE, ("recipe.yaml",)),
    ]  # fmt: skip


def _random(seed: int) -> list[Case]:
    """Good recipes with a value in place of a section, or with a piece of the text moved: never valid, since
    each has a value of the wrong type, or text that is not YAML."""
    chance = random.Random(seed)
    found = []
    parts = ["pairs", "policy", "references", "limits", "scoring", "method", "training", "evaluation", "compare"]
    for number in range(20):
        part = chance.choice(parts)
        value = chance.choice(
            [chance.randint(1, 10**9), chance.random(), "".join(chance.choices("abc", k=8)), [[]], True]
        )
        found.append(Case(f"random part {number}", _changed(part, value), RECIPE, (part,)))
    for number in range(20):
        at, what = (
            chance.random(),
            chance.choice(["\n\t- {", "\n]\n", "\n}\n", "\n@\n", '\n"\n', "\x00", "\n{\n", "\n`\n"]),
        )

        def make(place: Place, at: float = at, what: str = what) -> None:
            text = yaml.safe_dump(place.document(), sort_keys=False)
            ends = [i for i, char in enumerate(text) if char == "\n"]
            cut = ends[int(at * len(ends))]
            place.write("recipe.yaml", text[:cut] + what + text[cut:])

        found.append(Case(f"random text {number}", make, RECIPE, ("recipe.yaml",)))
    return found
