"""An unusable store is an error of one paragraph."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from loopback_s3 import LoopbackS3
from scored_rows import FINGERPRINT, cache_at, row, wanted, write

from mrpo_pipeline.cache import ReferenceCache, list_references
from mrpo_pipeline.errors import RunError, UserError

ASKED = wanted([(1, None)])


def told(work: Callable[[], Any], kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    assert "not-a-secret" not in message
    return message


@pytest.mark.parametrize("work", [lambda url: ReferenceCache.open(url, "base").check(FINGERPRINT), list_references])
def test_a_store_that_does_not_answer(
    s3: LoopbackS3,
    bucket: str,
    work: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    new_connections: None,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.line.cut()
    message = told(lambda: work(bucket))
    assert bucket in message and "cannot be reached" in message and "AWS_ENDPOINT_URL" in message


def test_a_store_that_takes_the_request_and_never_answers(
    s3: LoopbackS3, bucket: str, monkeypatch: pytest.MonkeyPatch, new_connections: None
) -> None:
    from fsspec.config import conf

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 1}})
    s3.stop()
    try:
        assert "cannot be reached" in told(lambda: ReferenceCache.open(bucket, "base").manifest())
    finally:
        s3.go_on()


def test_a_missing_bucket(s3: LoopbackS3) -> None:
    url = "s3://no-such-bucket-anywhere/cache"
    for work in (
        lambda: ReferenceCache.open(url, "base").manifest(),
        lambda: ReferenceCache.open(url, "base").create_or_check(FINGERPRINT),
        lambda: list_references(url),
    ):
        assert "there is no such bucket" in told(work)


def test_an_invalid_bucket_name(s3: LoopbackS3) -> None:
    assert "Invalid bucket name" in told(lambda: ReferenceCache.open("s3://No_Such!/cache", "base").manifest())


def test_no_credentials(s3: LoopbackS3, bucket: str, monkeypatch: pytest.MonkeyPatch, new_connections: None) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    message = told(lambda: ReferenceCache.open(bucket, "base").manifest())
    assert "needs credentials" in message and "not in the recipe" in message


def test_a_missing_profile(s3: LoopbackS3, bucket: str, monkeypatch: pytest.MonkeyPatch, new_connections: None) -> None:
    monkeypatch.setenv("AWS_PROFILE", "of-nobody")
    message = told(lambda: ReferenceCache.open(bucket, "base").manifest())
    assert "needs credentials" in message and "of-nobody" in message


def test_a_read_only_cache_serves_and_refuses_writes(s3: LoopbackS3, caplog: pytest.LogCaptureFixture) -> None:
    ours = s3.bucket("filled-before")
    write(cache_at(ours), [row(1, [-1.0, -2.0], [1, 1], True)])
    theirs = s3.bucket("read-only-store")
    for name in s3.keys(ours):
        s3.put(theirs, name, s3.get(ours, name))
    cache = ReferenceCache.open(theirs, "base")
    cache.create_or_check(FINGERPRINT)
    caplog.set_level("INFO", "mrpo")
    assert cache.sums(ASKED)["logps"].to_list() == [-3.0]
    assert cache.sums(ASKED)["logps"].to_list() == [-3.0]
    assert caplog.text.count("can't be stored") == 1 and "access was denied" in caplog.text
    with (
        pytest.raises(RunError, match=r"1 completions could not be written.*access was denied"),
        cache.writer() as writer,
    ):
        writer.add(row(2, [-1.0], [1], True))
    assert "access was denied" in told(lambda: ReferenceCache.open(theirs, "new").create_or_check(FINGERPRINT))
    assert s3.keys(theirs) == {name: size for name, size in s3.keys(ours).items() if "sums" not in name}


def test_a_failure_while_writing_is_reported_once(
    s3: LoopbackS3,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    new_connections: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    cache = cache_at(bucket)
    with pytest.raises(RunError, match="could not be written"), cache.writer(rows_per_shard=1) as writer:  # noqa: PT012
        writer.add(row(1, [-1.0], [1], True))
        s3.line.cut()
        writer.add(row(2, [-1.0], [1], True))
    assert not caplog.records


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://user:p4ssw0rd@bucket/cache", "contains a password"),
        ("S3://user:p4ss@w0rd@bucket/cache", "contains a password"),
        ("gs://user:p4ssw0rd@bucket", "contains a password"),
        ("https://user:p4ssw0rd@host/cache", "contains a password"),
        ("s3://bucket/cache?X-Amz-Signature=p4ssw0rd", "Set options in the environment"),
        ("s3://bucket/cache#p4ssw0rd", "Set options in the environment"),
        ("simplecache::s3://bucket/cache", "object store"),
        ("s3://bucket/ca*he", "BUCKET/FOLDER"),
        ("s3://", "has no bucket"),
        ("s3:///cache", "has no bucket"),
        ("s3:/bucket/cache", "is not a URL"),
        ("https://host/cache", "object store"),
        ("sftp://host/cache", "object store"),
    ],
)
def test_an_unsupported_url(url: str, expected: str) -> None:
    for work in (lambda: ReferenceCache.open(url, "base"), lambda: list_references(url)):
        message = told(work)
        assert expected in message
        assert "p4ss" not in message and "w0rd" not in message


@pytest.mark.parametrize(
    ("url", "module", "install"),
    [
        ("s3://bucket/cache", "s3fs", "mrpo[s3]"),
        ("gs://bucket", "gcsfs", "gcsfs"),
        ("az://box/cache", "adlfs", "adlfs"),
    ],
)
def test_a_missing_package_is_named_with_its_installation(
    url: str, module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install '{install}'" in told(lambda: ReferenceCache.open(url, "base"))
