"""The draws of many examples at once: what torch draws for each after `seeds.seed_example`, without a loop over them.

A generator of torch on the processor is a Mersenne Twister begun with one 32-bit number, here the first that NumPy's
`SeedSequence` makes of the place of an example. Both are formed for all examples together, one operation after another.
"""

from collections.abc import Iterator, Sequence

import numpy as np

# Of SeedSequence: https://numpy.org/doc/stable/reference/random/bit_generators/generated/numpy.random.SeedSequence.html
_POOL = 4  # words
_BEGIN, _STEP = 0x43B0D7E5, 0x931E8875  # what is mixed in on the way into the pool
_OUT_BEGIN, _OUT_STEP = 0x8B51F9DD, 0x58F38DED  # and on the way out
_LEFT, _RIGHT = 0xCA01F9DD, 0x4973F715
# Of the Mersenne Twister, MT19937.
_SPREAD, _AHEAD = 1812433253, 397
_TWIST = np.uint32(0x9908B0DF)
_WORD = 0xFFFFFFFF


def seeds(place: Sequence[int], numbers: np.ndarray) -> np.ndarray:
    """Return `clars.lab.seeds.derived(*place, number)` for each of `numbers` [n], as uint32 [n].

    All numbers are below 2^32, and there are at most three of `place`.
    """
    words = [np.full(len(numbers), number, np.uint32) for number in place] + [numbers.astype(np.uint32)]
    words += [np.zeros(len(numbers), np.uint32)] * (_POOL - len(words))
    constants = _constants(_BEGIN, _STEP)
    pool = [_hashed(word, constants) for word in words]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                mixed = pool[target] * np.uint32(_LEFT) - _hashed(pool[source], constants) * np.uint32(_RIGHT)
                pool[target] = mixed ^ (mixed >> np.uint32(16))
    return _hashed(pool[0], _constants(_OUT_BEGIN, _OUT_STEP))


def outputs(begun: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` 32-bit outputs of generators begun with `begun` uint32 [n], as uint32 [n, count]."""
    if count > 624 - _AHEAD:
        raise ValueError(f"{count} draws: these are formed from the state as it is begun, which has fewer.")
    kept, state = {0: begun}, begun
    for number in range(1, _AHEAD + count):
        state = (state ^ (state >> np.uint32(30))) * np.uint32(_SPREAD) + np.uint32(number)
        if number <= count or number >= _AHEAD:
            kept[number] = state
    drawn = [kept[n + _AHEAD] ^ _twisted(kept[n], kept[n + 1]) for n in range(count)]
    return np.stack([_tempered(word) for word in drawn], axis=1)


def _constants(value: int, step: int) -> Iterator[tuple[np.uint32, np.uint32]]:
    while True:
        following = value * step & _WORD
        yield np.uint32(value), np.uint32(following)
        value = following


def _hashed(words: np.ndarray, constants: Iterator[tuple[np.uint32, np.uint32]]) -> np.ndarray:
    added, factor = next(constants)
    words = (words ^ added) * factor
    return words ^ (words >> np.uint32(16))


def _twisted(word: np.ndarray, following: np.ndarray) -> np.ndarray:
    joined = (word & np.uint32(0x80000000)) | (following & np.uint32(0x7FFFFFFF))
    return (joined >> np.uint32(1)) ^ np.where(following & np.uint32(1), _TWIST, np.uint32(0))


def _tempered(word: np.ndarray) -> np.ndarray:
    word = word ^ (word >> np.uint32(11))
    word = word ^ ((word << np.uint32(7)) & np.uint32(0x9D2C5680))
    word = word ^ ((word << np.uint32(15)) & np.uint32(0xEFC60000))
    return word ^ (word >> np.uint32(18))
