"""A small invented world for the demo: its preference pairs, and three little models that each know a part of it."""
