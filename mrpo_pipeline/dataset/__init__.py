"""From pairs and caches to what stage two trains on."""
