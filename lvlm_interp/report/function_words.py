"""Words of English that hold a sentence together and say little of what is seen.

Spatial words (`left`, `under`, `behind`), numbers, `yes`, `no` and `not` say something of a picture and are not among
them. Other languages have no list here: all their words count.
"""

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those there here
    i me my mine we us our ours you your yours he him his she her hers it its they them their theirs who whom whose
    which what itself himself herself themselves
    am is are was were be been being do does did have has had having can could will would shall should may might must
    isn't aren't it's that's there's
    and or but nor so yet if then than because while although though as since
    of to in on at by for from with into onto about via per
    also too very just such some any each every other another both
    """.split()
)


def is_function_word(text: str) -> bool:
    """Whether a word says little by itself."""
    return text.strip().casefold().replace("’", "'") in FUNCTION_WORDS
