"""Hundreds of kinds of broken and hostile input, with checks of how `mrpo` handles each.

case, world: one malformed input and its command; the good files it is derived from
server, checks: runs the command in a forked child; checks how it ended
recipes, pairs, names, templates, models, caches: the lists of cases
fuzz: good files with random bytes changed, given directly to the parsers
run: the driver
"""
