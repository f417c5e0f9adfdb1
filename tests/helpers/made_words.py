"""Words that made-up passages and queries are built from."""

TOPICS = ("otter", "walnut", "glacier", "violin", "harbor", "comet", "meadow", "copper", "falcon", "lantern")
FILLER = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "is",
    "was",
    "for",
    "on",
    "with",
    "as",
    "it",
    "be",
    "at",
    "by",
    "this",
]
WORDS = [
    "river",
    "stone",
    "cloud",
    "maple",
    "copper",
    "violet",
    "harbor",
    "lantern",
    "meadow",
    "falcon",
    "ember",
    "willow",
    "canyon",
    "orchid",
    "thunder",
]
