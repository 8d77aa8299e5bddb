"""Labels against the truth: a tensor of the same shape whose elements name the example that they belong to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clars.norms.owners import PLAIN, Following, Labels, Pattern, Unknown, read

B = 3
NOBODY = -1.0


def permuted(x, draw):
    return x.permute(draw(st.permutations(range(x.dim()))))


def reshaped(x, draw):
    size, shape = x.numel(), []
    while size > 1:
        shape.append(draw(st.sampled_from([n for n in range(2, size + 1) if size % n == 0])))
        size //= shape[-1]
    return x.reshape(shape or (1,))


def narrowed(x, draw):
    dim = draw(st.integers(0, x.dim() - 1))
    start = draw(st.integers(0, x.shape[dim] - 1))
    return x.narrow(dim, start, draw(st.integers(1, x.shape[dim] - start)))


def stepped(x, draw):
    index = [slice(None)] * x.dim()
    index[draw(st.integers(0, x.dim() - 1))] = slice(None, None, 2)
    return x[tuple(index)]


def flipped(x, draw):
    return x.flip(draw(st.integers(0, x.dim() - 1)))


def rolled(x, draw):
    return x.roll(1, draw(st.integers(0, x.dim() - 1)))


def repeated(x, draw):
    return x.repeat(*(draw(st.sampled_from([1, 1, 2])) for _ in range(x.dim())))


def padded(x, draw):
    return F.pad(x, (draw(st.integers(0, 1)), 1), value=NOBODY)


def unfolded(x, draw):
    return x.unfold(draw(st.integers(0, x.dim() - 1)), 1, 1)


def joined(x, draw):
    return torch.cat([x, x], draw(st.integers(0, x.dim() - 1)))


def copied(x, draw):
    return x.mT.contiguous().mT if x.dim() > 1 else x.clone()


MOVES = (permuted, reshaped, narrowed, stepped, flipped, rolled, repeated, padded, unfolded, joined, copied)


def owners_by(pattern: Pattern, shape) -> torch.Tensor:
    owners = torch.arange(B).repeat_interleave(pattern.inner).repeat(pattern.outer).double()
    return owners.view(-1, *[1] * (len(shape) - 1 - pattern.dim)).expand(shape)


@settings(max_examples=300)
@given(st.data())
def test_a_pattern_is_true_wherever_the_elements_are_moved(data):
    """It may be unknown; what is said of an element is what it names."""
    shape = (B, *data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3)))
    x = torch.arange(B).double().view(-1, *[1] * (len(shape) - 1)).expand(shape).contiguous()
    labels = Labels(B)
    labels.put(x, PLAIN)
    for _ in range(data.draw(st.integers(1, 4))):
        move = data.draw(st.sampled_from(MOVES))
        if x.numel() > 500:
            break
        with Following(labels):
            x = move(x, data.draw)
        label = labels.of(x)
        if isinstance(label, Pattern):
            assert x.shape[label.dim] == B * label.rows
            expected = owners_by(label, x.shape)
            assert bool(((x == expected) | (x == NOBODY)).all()), (move.__name__, x.shape, label)


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        (lambda x: x.reshape(B * 4, 5), Pattern(0, 1, 4)),
        (lambda x: x.transpose(0, 1), Pattern(1)),
        (lambda x: x.transpose(0, 1).reshape(4 * B, 5), Pattern(0, 4, 1)),
        (lambda x: x.reshape(B, 2, 2, 5).transpose(0, 1).reshape(2, B * 2, 5), Pattern(1, 1, 2)),
        (lambda x: x.reshape(B, 2, 2, 5).transpose(0, 1).reshape(-1, 5), Pattern(0, 2, 2)),
        (lambda x: torch.cat([x, x]), Pattern(0, 2, 1)),
        (lambda x: x.softmax(1) @ torch.ones(5, 2), PLAIN),
        (lambda x: x @ x.mT, PLAIN),
        (lambda x: F.scaled_dot_product_attention(x, x, x), PLAIN),
        (lambda x: x.topk(2, 1).values, PLAIN),
        (lambda x: x.sum((1, 2)), PLAIN),
        (lambda x: x.argmax(1), PLAIN),
        (lambda x: torch.ones(7, 2)[(x[:, 0, 0] > 0).long()], PLAIN),
        (lambda x: torch.zeros_like(x), None),
        (lambda x: x.mean(0), Unknown.MIXED),
        (lambda x: x[:, 0] @ x[:, 0].T, Unknown.MIXED),
        (lambda x: x.flip(0), Unknown.MIXED),
        (lambda x: torch.diag_embed(x[:, 0, 0]), Unknown.MIXED),  # along either dimension
        (lambda x: x.cumsum(0), Unknown.MIXED),
        (lambda x: x[:2], Unknown.MIXED),
        (lambda x: x[1], Unknown.MIXED),
        (lambda x: x + x.flip(0), Unknown.MIXED),
    ],
)
def test_what_is_found(move, expected):
    labels, x = Labels(B), torch.randn(B, 4, 5)
    labels.put(x, PLAIN)
    with Following(labels):
        y = move(x)
    assert labels.of(y) == expected


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (lambda x: x[:3], PLAIN),
        (lambda x: x[3:], PLAIN),
        (lambda x: x[1:4], Unknown.MIXED),  # the second example first
        (lambda x: x.as_strided((3, 4), (4, 1)), PLAIN),
        (lambda x: x.as_strided((3, 6), (4, 1)), Unknown.MIXED),  # with half of the next example's
        (lambda x: x.view(2, 3, 4), Pattern(1)),
        (lambda x: x.view(torch.float64), Pattern(0, 2, 1)),
        (lambda x: x[::2], Unknown.MIXED),
    ],
)
def test_views_of_two_views_of_a_batch(view, expected):
    labels, x = Labels(B), torch.randn(2 * B, 4)
    labels.put(x, Pattern(0, 2, 1))
    assert labels.of(view(x)) == expected


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda y, x: y.index_copy_(1, torch.tensor([2, 0]), x[:, :2]), PLAIN),
        (lambda y, x: y.scatter_(1, x[:, :2].argsort(1), x[:, :2]), PLAIN),
        (lambda y, x: [y.__setitem__((slice(None), torch.tensor([1, 3])), x[:, :2]), y][1], PLAIN),
        (lambda y, x: y.index_put_((torch.tensor([1, 0, 2]),), x), Unknown.MIXED),
        (lambda y, x: y.index_add_(0, torch.tensor([1, 0, 2]), x), Unknown.MIXED),
        (lambda y, x: y.cumsum_(0), Unknown.MIXED),
        (lambda y, x: y.mul_(2).tanh_(), PLAIN),
        (lambda y, x: y.transpose_(0, 1), Pattern(1)),
    ],
)
def test_what_is_written(write, expected):
    labels, x = Labels(B), torch.randn(B, 4, 5)
    labels.put(x, PLAIN)
    with Following(labels):
        y = write(x.clone(), x)
    assert labels.of(y) == expected


def test_values_and_random_numbers_are_those_of_a_forward_that_is_not_followed():
    x = torch.randn(B, 4, 5)

    def computed():
        torch.manual_seed(0)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5) + F.dropout(x.topk(1, 1).values, 0.5)

    labels, plain = Labels(B), computed()
    labels.put(x, PLAIN)
    with Following(labels):
        followed = computed()
    assert torch.equal(plain, followed)


def test_memory_that_is_used_again_has_no_label():
    labels = Labels(B)
    with Following(labels):
        for _ in range(20):
            x = torch.randn(B, 64)
            assert labels.of(x) is None
            labels.put(x, PLAIN)
            del x


@pytest.mark.parametrize(
    ("words", "expected"),
    [("b ...", PLAIN), ("(b n) c", Pattern(0, 1, 4)), ("(n b) c", Pattern(0, 4, 1))],
)
def test_words(words, expected):
    assert read(words, (B if words == "b ..." else B * 4, 5), B) == expected


@pytest.mark.parametrize("pattern", [PLAIN, Pattern(0, 1, 4), Pattern(0, 4, 1), Pattern(1, 2, 2), Pattern(2, 1, 2)])
def test_gathering_is_undone(pattern):
    shape = [5, 5, 5]
    shape[pattern.dim] = B * pattern.rows
    x = torch.randn(shape)
    gathered = pattern.gathered(x)
    owners = pattern.gathered(owners_by(pattern, x.shape))
    assert torch.equal(pattern.scattered(gathered), x)
    assert torch.equal(owners.reshape(len(owners), -1)[:, 0], torch.arange(B).repeat_interleave(pattern.rows).double())
