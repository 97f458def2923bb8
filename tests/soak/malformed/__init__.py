"""Broken and hostile input, some hundreds of kinds of it: what `mrpo` makes of each is looked at, not only that it ends.

case, world        one malformed input and the command that meets it; the good files it was made from
server, checks     the command run in a child of its own; what must hold of how it ended
recipes, pairs, names, templates, models, caches           the lists
fuzz               good files with random bytes changed, straight into the parsers
run                the driver
"""
