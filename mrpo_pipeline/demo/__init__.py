"""The demo: preference pairs about a fictional country, and three tiny models that each know a part of it."""
