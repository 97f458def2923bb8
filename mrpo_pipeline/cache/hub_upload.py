"""Upload files to a data set of the Hugging Face hub one by one, and publish them in one commit."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa

from mrpo_pipeline.cache.object_storage import ObjectStorage
from mrpo_pipeline.cache.storage import sha256_hex
from mrpo_pipeline.cache.store_connections import connect, store_errors
from mrpo_pipeline.errors import UserError

_DATASET = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


class HubUpload:
    """The files of one commit to a data set, which is created if it does not exist.

    A large file is uploaded when it is added, and then freed from memory. A file whose SHA-256 the hub already has is not sent
    again, so a killed upload resumes. Credentials come from the environment or `hf auth login`.

    Raises:
        UserError: the URL names no data set.
        StoreError: the hub cannot be reached, or refuses.
    """

    def __init__(self, url: str, *, private: bool = False) -> None:
        match = _DATASET.fullmatch(url.rstrip("/"))
        if match is None:
            raise UserError(f"{url} names no data set: expected hf://datasets/ORGANISATION/NAME. Correct the target.")
        from huggingface_hub import HfApi

        self.url = url.rstrip("/")
        self._api = HfApi()
        self._repo: dict[str, Any] = {"repo_id": match[1], "repo_type": "dataset"}
        self._revision = match[2]
        self._operations: list[Any] = []
        with store_errors(self.url):
            self._api.create_repo(**self._repo, private=private or None, exist_ok=True)
            connect(self.url)[0].invalidate_cache()  # it may have cached that the data set does not exist

    def add(self, path: str, data: bytes) -> None:
        from huggingface_hub import CommitOperationAdd

        addition = CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)
        with store_errors(self.url):
            self._api.preupload_lfs_files(additions=[addition], revision=self._revision, **self._repo)
        self._operations.append(addition)

    def remove(self, path: str) -> None:
        """Delete a file of the data set with the commit."""
        from huggingface_hub import CommitOperationDelete

        self._operations.append(CommitOperationDelete(path_in_repo=path))

    def commit(self, message: str) -> None:
        """Publish all files at once. Raises StoreError."""
        with store_errors(self.url):
            self._api.create_commit(
                operations=self._operations, commit_message=message, revision=self._revision, **self._repo
            )


class UploadStorage(ObjectStorage):
    """A folder of an upload: files of the data set can be read; files that are put or deleted change with the commit."""

    def __init__(self, upload: HubUpload, folder: str) -> None:
        super().__init__(f"{upload.url}/{folder}".rstrip("/"))
        self._upload = upload
        self._prefix = f"{folder}/" if folder else ""
        self._created: dict[str, bytes] = {}

    def read(self, name: str) -> pa.Buffer:
        return pa.py_buffer(self._created[name]) if name in self._created else super().read(name)

    def put(self, folder: str, data: pa.Buffer | bytes, *, prefix: str = "", suffix: str = ".parquet") -> str:
        name = f"{folder}/{prefix}{sha256_hex(data)}{suffix}"
        self._upload.add(f"{self._prefix}{name}", bytes(memoryview(data)))
        return name

    def delete(self, name: str) -> None:
        self._upload.remove(f"{self._prefix}{name}")

    def create(self, name: str, data: bytes) -> bool:
        self._upload.add(f"{self._prefix}{name}", data)
        self._created[name] = data
        return True
