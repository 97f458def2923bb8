"""Pairs and log π̃ in the file formats of other trainers; caches and targets published with a card."""

from mrpo_pipeline.exports.export import TRAINERS, Export, export_targets
from mrpo_pipeline.exports.published_targets import PublishedTargets, is_place, publish_targets

__all__ = ["TRAINERS", "Export", "PublishedTargets", "export_targets", "is_place", "publish_targets"]
