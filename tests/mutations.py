"""Files as a careless or hostile hand leaves them: seeded changes to the bytes of a valid file, of any format."""

import re
from collections.abc import Callable, Iterator
from random import Random

TOKEN = re.compile(rb"[\w.+-]+")
SPAN = 40  # bytes that one change takes away, repeats or overwrites, at most
MANY = 3000  # nested brackets, or digits of a number: more than any reader should follow

NUMBERS = [
    *b"0 -0 -1 1.5 010 0x1F 0o17 0b1 1_000 1:30 1e400 -1e400 5e-324 2020-01-01".split(),
    *b"nan NaN .nan inf .inf -.inf Infinity -Infinity".split(),
    *(str(2**power + step).encode() for power in (31, 32, 53, 63, 64, 127) for step in (-1, 0, 1)),
    b"9" * MANY,
]
WORDS = [
    *b"null ~ true false yes no on off y N None __proto__ __class__ ../../etc/passwd --- ...".split(),
    *(b"[]", b"{}", b'""', b"''", b"[[]]", b"{a: 1}", b'{"a": 1}', b'{"a": 1, "a": 2}'),
    *(b"&a [1]", b"*a", b"<<: *a", b"!!python/object/apply:os.system [id]", b"!!str 1", b"!x y", b"? a"),
]
FRAGMENTS = [
    *(b"\x00", b"\x07", b"\x1b[2J", b"\x1b]0;owned\x07", b"\x7f", b"\x9b31m", b"\r", b"\n", b"\t", b"\n\t", b"\x0b"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    *(text.encode() for text in ("\x85", "\x9b", "\u2028", "\u202e", "\u200b", "\ufffe", "\u0661", "\U0001f600")),
    *(rb"\ud800", rb'"\ud800"', rb"\u0000", rb'"\u001b[31m"', rb'"\x1b[31m"', rb"\x", b"\\"),
    *(b'"', b"'", b":", b": ", b",", b"#", b" #", b"%", b"@", b"`", b"|", b">", b"- ", b"{", b"}", b"[", b"]", b"  "),
    *(b"[" * MANY, b"{" * MANY, b'{"a":' * MANY, b"- " * MANY, b"[" * MANY + b"]" * MANY, b"a" * 100 * MANY),
]


def mutated(content: bytes, random: Random) -> bytes:
    """Return `content` with one to three changes, which follow from the state of `random`."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3))):
        content = random.choice(CHANGES)(content, random)
    return content


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield `count` changed copies of `content`, none of which equals it."""
    random = Random(seed)
    while count:
        changed = mutated(content, random)
        if changed != content:
            yield changed
            count -= 1


def _flipped_bit(content: bytes, random: Random) -> bytes:
    start, end = _span(content, random, longest=1)
    return content[:start] + bytes(byte ^ 1 << random.randrange(8) for byte in content[start:end]) + content[end:]


def _without_span(content: bytes, random: Random) -> bytes:
    start, end = _span(content, random)
    return content[:start] + content[end:]


def _span_twice(content: bytes, random: Random) -> bytes:
    start, end = _span(content, random)
    return content[:end] + content[start:]


def _span_overwritten(content: bytes, random: Random) -> bytes:
    start, end = _span(content, random, longest=4)
    return content[:start] + random.randbytes(end - start) + content[end:]


def _cut_off(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _line_moved(content: bytes, random: Random) -> bytes:
    """Take a line away, put it elsewhere, or have it twice: a key that is missing, in a wrong section, or repeated."""
    lines = content.splitlines(keepends=True) or [b""]
    line = lines.pop(random.randrange(len(lines)))
    for _ in range(random.randrange(3)):
        lines.insert(random.randrange(len(lines) + 1), line)
    return b"".join(lines)


def _tokens_swapped(content: bytes, random: Random) -> bytes:
    tokens = list(TOKEN.finditer(content))
    if len(tokens) < 2:
        return content
    one, other = sorted(random.sample(tokens, 2), key=re.Match.start)
    between = content[one.end() : other.start()]
    return content[: one.start()] + other[0] + between + one[0] + content[other.end() :]


def _token_replaced(content: bytes, random: Random) -> bytes:
    tokens = list(TOKEN.finditer(content))
    if not tokens:
        return content
    token = random.choice(tokens)
    return content[: token.start()] + random.choice(NUMBERS + WORDS) + content[token.end() :]


def _token_twice(content: bytes, random: Random) -> bytes:
    """Put a token of the file in the place of another: often one key for two values."""
    tokens = list(TOKEN.finditer(content))
    if not tokens:
        return content
    one, other = random.choice(tokens), random.choice(tokens)
    return content[: one.start()] + other[0] + content[one.end() :]


def _fragment_inserted(content: bytes, random: Random) -> bytes:
    place = random.randrange(len(content) + 1)
    return content[:place] + random.choice(FRAGMENTS + NUMBERS + WORDS) + content[place:]


def _other_encoding(content: bytes, random: Random) -> bytes:
    encoding = random.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7"))
    return content.decode("utf-8", "replace").encode(encoding)


def _span(content: bytes, random: Random, longest: int = SPAN) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.randint(1, longest))


CHANGES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flipped_bit,
    _without_span,
    _span_twice,
    _span_overwritten,
    _cut_off,
    _line_moved,
    _tokens_swapped,
    _token_replaced,
    _token_twice,
    _fragment_inserted,
    _other_encoding,
)
