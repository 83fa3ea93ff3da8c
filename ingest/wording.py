"""Numbers with their nouns, for what a user reads."""


def plural(count: int, noun: str) -> str:
    """The noun as it follows the count."""
    return noun if count == 1 else f"{noun}s"


def counted(count: int, noun: str) -> str:
    """Such as `1 shard` or `2,048 shards`."""
    return f"{count:,} {plural(count, noun)}"
