"""Pairs and log π̃ as other trainers read them, so that MRPO can be used without leaving one's trainer."""

from mrpo_pipeline.exports.export import TRAINERS, Export, export_targets

__all__ = ["TRAINERS", "Export", "export_targets"]
