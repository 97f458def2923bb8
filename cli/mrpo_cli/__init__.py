"""The `mrpo` command: parsing and printing, no logic."""
