"""A place to publish to: a folder, an object store, or a data set of the Hugging Face hub in one commit; with a card.

A card's header has a tag, which distinguishes it from other READMEs; those are never overwritten.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from mrpo_pipeline.cache import StoreError, check_location, refuse_files
from mrpo_pipeline.cache.hub_upload import HubUpload, UploadStorage
from mrpo_pipeline.cache.local_storage import LocalStorage
from mrpo_pipeline.cache.object_storage import ObjectStorage, write_object
from mrpo_pipeline.cache.storage import Storage
from mrpo_pipeline.cache.store_connections import NO_PLACE, error_code
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.atomic import write_whole

CARD = "README.md"


class Publication:
    """Files to publish at a place. On the hub they appear with the card, in one commit; elsewhere one by one, the card last."""

    def __init__(self, target: str, tag: str, *, key: str, private: bool = False) -> None:
        """
        Args:
            target: a folder, a URL as ``cache:`` takes it, or ``hf://datasets/ORGANISATION/NAME``.
            tag: of the cards that may be replaced.
            key: the option that names the target, for messages.
            private: make the data set private, if it is created.

        Raises:
            UserError: the target is not such a place, has another README, or cannot be reached. Nothing was created or written.
        """
        self._key = key
        self._place = check_location(target, key)
        self._private = private
        self._upload: HubUpload | None = None
        self.on_hub = str(self._place).startswith("hf://")
        if private and not self.on_hub:
            raise UserError(
                f"--private is given, and {target} is no data set of the hub: expected hf://datasets/ORGANISATION/NAME. Remove one."
            )
        try:
            self._refuse_other_readme(tag)
        except StoreError as error:
            raise UserError(str(error)) from error

    def storage(self, folder: str = "") -> Storage:
        """A folder of the place, or the place itself; creates the data set. Raises UserError if that is refused."""
        if self.on_hub:
            return UploadStorage(self._hub(), folder)
        if isinstance(self._place, Path):
            refuse_files(self._key, [self._place, self._place / folder])
            return LocalStorage(self._place / folder)
        return ObjectStorage(f"{self._place}/{folder}".rstrip("/"))

    def finish(self, card: str, message: str) -> None:
        """Write the card; on the hub, this commits all files. Raises StoreError, OSError."""
        if self.on_hub:
            self._hub().add(CARD, card.encode())
            self._hub().commit(message)
        elif isinstance(self._place, Path):
            write_whole(self._place / CARD, card)
        else:
            write_object(self._place, CARD, card.encode())

    def _hub(self) -> HubUpload:
        if self._upload is None:
            try:
                self._upload = HubUpload(str(self._place), private=self._private)
            except StoreError as error:
                raise UserError(str(error)) from error
        return self._upload

    def _refuse_other_readme(self, tag: str) -> None:
        text = self._readme()
        if text is not None and tag not in _tags(text):
            raise UserError(
                f"{self._place}/{CARD} is another text than the card of mrpo, and would be overwritten: expected a place of its own. "
                "Name another target, or move the file."
            )

    def _readme(self) -> str | None:
        try:
            if isinstance(self._place, Path):
                data = (self._place / CARD).read_bytes()
            else:
                data = ObjectStorage(self._place).read(CARD).to_pybytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(
                f"{self._place}/{CARD} cannot be read ({error.strerror or error}): another README could be overwritten. Give read access."
            ) from error
        except StoreError as error:
            if self.on_hub and error_code(error) in NO_PLACE:
                return None  # created later, or refused then
            raise
        return data.decode("utf-8", "replace")


def _tags(text: str) -> list[str]:
    """The tags in the header of a card; none without a readable header."""
    from huggingface_hub import DatasetCard

    try:
        return list(getattr(DatasetCard(text).data, "tags", None) or [])
    except (ValueError, TypeError, yaml.YAMLError):
        return []
