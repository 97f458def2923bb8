"""Bytes on disk: complete or not there at all."""
