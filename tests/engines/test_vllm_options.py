"""Engine options of a recipe: an error is one sentence that names the option."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from mrpo_pipeline.engines import open_engine
from mrpo_pipeline.engines.vllm.adapters import UnsupportedError
from mrpo_pipeline.engines.vllm.errors import cause, plain
from mrpo_pipeline.engines.vllm.options import check_here, checked, vllm_quantization
from mrpo_pipeline.errors import UserError


@dataclass
class Arguments:
    """Like vLLM's EngineArgs: types, and an annotation that only a type checker resolves."""

    seqs: int | None = None
    share: float = 0.9
    eager: bool = False
    kind: Literal["auto", "fp8"] = "auto"
    extra: dict[str, Any] | None = None
    later: "NotHere | None" = None  # noqa: F821


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "bfloat16"}, "scoring.dtype: 'bfloat16' found; .* references.base.dtype"),
        ({"trust_remote_code": True}, "references.base.trust_remote_code"),
        ({"logprobs_mode": "raw_logits"}, "scoring.logprobs_mode: 'raw_logits' found, one of raw_logprobs"),
        ({"kv_sharing_fast_prefill": True}, "wrong with it"),
        ({"tensor_parallel_size": "two"}, "scoring.tensor_parallel_size: 'two' found, the number of GPUs expected"),
        ({"pipeline_parallel_size": 0}, "scoring.pipeline_parallel_size: 0 found"),
    ],
)
def test_what_needs_no_vllm_to_be_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_here(options, "base")


def test_options_that_are_fine_pass() -> None:
    check_here({"tensor_parallel_size": 2, "max_num_seqs": 8, "logprobs_mode": "processed_logprobs"}, "base")
    given = {"seqs": "8", "share": "0.5", "eager": True, "kind": "fp8", "extra": {"a": 1}, "later": object()}
    assert checked(given, Arguments) == given | {"seqs": 8, "share": 0.5}
    assert checked({"seqs": None}, Arguments) == {"seqs": None}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seqs": "many"}, "scoring.seqs: 'many' found; vLLM says: Input should be a valid integer"),
        ({"kind": "fp9"}, "scoring.kind: 'fp9' found; .*'auto' or 'fp8'"),
        ({"extra": 3}, "scoring.extra: 3 found; .*dictionary"),
    ],
)
def test_an_option_of_the_wrong_type_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        checked(options, Arguments)


def test_quantizations_by_their_names() -> None:
    methods = ["awq", "gptq", "fp8", "compressed-tensors"]
    assert vllm_quantization(None, methods) is None
    assert vllm_quantization("gptq", methods) == "gptq"
    assert vllm_quantization("nf4", [*methods, "bitsandbytes"]) == "bitsandbytes"
    for name in ("nf4", "int8", "bitsandbytes"):
        with pytest.raises(UnsupportedError, match="bitsandbytes"):
            vllm_quantization(name, methods)
    with pytest.raises(UserError, match=r"'awqq' is known neither .* Did you mean awq\?"):
        vllm_quantization("awqq", methods)


def test_a_cause_is_one_line_without_what_programmers_want() -> None:
    message = (
        "1 validation error for VllmConfig\n  Value error, Model Runner V2 requires Triton. [type=value_error, "
        "input_value=ArgsKwargs((), {'a': 1}), input_type=ArgsKwargs]\n    For further information visit https://x"
    )
    assert plain(message) == "Model Runner V2 requires Triton."
    assert len(plain("x " * 5000)) < 700
    log = "\n".join(
        [
            "(Worker pid=1) ERROR AssertionError: Not enough NUMA nodes.",
            "(EngineCore pid=2) ERROR RuntimeError: Engine core initialization failed. See root cause above.",
            "EOFError: ",
        ]
    )
    echo = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert cause(echo, log) == "AssertionError: Not enough NUMA nodes."
    assert cause(echo, "") == echo
    assert cause("one thing", log) == "one thing"


@pytest.mark.vllm
def test_an_option_of_the_reference_is_refused_before_anything_starts(source_of, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tiny_models import build

    with pytest.raises(UserError, match=r"references\.tiny\.quantization"):
        open_engine("auto", source_of(build("llama", tmp_path / "llama")), {"quantization": "fp8"})
