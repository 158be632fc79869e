"""Where every part of a detector and of its criterion is known by name."""

from util.config.registry import Registry

PARTS = Registry("part")
