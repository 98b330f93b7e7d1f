"""Options refuse whatever they cannot use: ValueError, at construction, by name."""

import dataclasses

import numpy as np
import pytest
import torch

from hilotoken import METHODS, Find, HiLo, Refresh, plan_tokens
from hilotoken.checks import block_numbers, number, said, share, whole
from hilotoken.methods import SDTM, Method, RandomKeep, ToMe, UDiTAttention


class Mute:
    """A value that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no words")


HOSTILE = [
    None, [], (), {}, [1], "", "x", b"x", 1j, True, False, np.bool_(1), object(), Mute(), print,
    float("nan"), float("inf"), -1, -0.5, 2**31, 2**63, 2**64, 10**20, 10**5000, -(10**5000), 1e300,
    np.float32("nan"), np.arange(3), torch.tensor([0, 1]), torch.tensor(1), torch.rand(9, 9),
    {"laplacian": None}, {"laplacian": True}, {None: 1}, {"dct": 10**400}, "1-", "5-2",
    "²", "1" * 5000,
    (0, None), [0, 1.5], (0, 10**5000), range(10**12), (True, 2), ("2", 2),
]  # fmt: skip
KINDS = [*METHODS.values(), UDiTAttention, Refresh, Find]
FIELDS = [(kind, field.name) for kind in KINDS for field in dataclasses.fields(kind)]
BESIDE = {"cell": {"context": "sampled"}, "drift": {"at": "auto"}}  # without which it does nothing
PLAIN = (bool, int, float, str, type(None))


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=str)
def test_an_option_takes_a_value_as_pythons_own_or_refuses_it_by_name(kind, name):
    for value in HOSTILE:
        given = BESIDE.get(name, {"at": 2} if kind is Refresh else {})
        method, refusal = made(kind, given | {name: value})
        if refusal:
            assert name.split("_")[0] in refusal
            assert len(refusal) < 400
            continue
        assert all(type(leaf) in PLAIN for leaf in leaves(getattr(method, name)))
        if isinstance(method, Method):
            assert planned(method).tokens_run > 0


def leaves(value):
    """What a value is made of."""
    value = tuple(vars(value).values()) if isinstance(value, Refresh | Find) else value
    value = tuple(value.values()) if isinstance(value, dict) else value
    return [leaf for one in value for leaf in leaves(one)] if isinstance(value, tuple) else [value]


def made(kind, options):
    """The method, and why it was refused."""
    try:
        return kind(**options), ""
    except ValueError as error:
        return None, str(error)


def planned(method):
    photo, mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    mask[..., 10:20, 10:20] = 1
    return plan_tokens(photo, mask, grid=(8, 8), method=method)


@pytest.mark.parametrize(
    ("make", "same"),
    [
        (lambda: HiLo(dilate=np.int64(1), detail=np.float32(0.5)), HiLo(dilate=1, detail=0.5)),
        (lambda: HiLo(weights=np.bool_(True), bucket=np.uint8(8)), HiLo(weights=True, bucket=8)),
        (lambda: HiLo(refresh=[np.int64(0), 2], seed=np.int64(3)), HiLo(refresh=(0, 2), seed=3)),
        (lambda: ToMe(stride=[np.int64(2), 4]), ToMe(stride=(2, 4))),
        (lambda: ToMe(blocks=[np.int8(1)]), ToMe(blocks=(1,))),
        (lambda: RandomKeep(detail=1, dilate=np.int16(1)), RandomKeep(detail=1.0, dilate=1)),
    ],
)  # fmt: skip
def test_numpys_numbers_are_numbers(make, same):
    assert make() == same
    assert repr(make()) == repr(same)


@pytest.mark.parametrize(
    "options", [{"dilate": 3_000_000_000}, {"coarse": 10**20}, {"cell": 2**63}, {"seed": 2**64}]
)
def test_numbers_that_would_blow_up_later_are_refused_with_the_largest(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at most"):
        HiLo(context="sampled", **options)


def test_the_largest_numbers_are_planned_with():
    for options in ({"dilate": 2**16}, {"coarse": 2**16}, {"bucket": 2**31 - 1}):
        assert planned(HiLo(**options)).tokens_run > 0
    sampled = HiLo(context="sampled", cell=2**16, seed=2**63 - 1, bucket=1)
    assert planned(sampled).tokens_run < 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToMe(attention=False, feed_forward=True, weights=True), "weights=True is of keys"),
        (lambda: SDTM(structure=0, weights=True), "weights is of the structure stage"),
        (lambda: SDTM(structure=0, emphasis=2), "emphasis is of the structure stage"),
    ],
)
def test_options_that_would_do_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refusal_is_one_short_line():
    for value in HOSTILE:
        assert "\n" not in said(value)
        assert len(said(value)) <= 80
    assert said(Mute()) == "<Mute>"


def test_limits_are_allowed_and_what_lies_beyond_is_not():
    assert (whole(1, 3)("n", 1), whole(1, 3)("n", 3)) == (1, 3)
    assert (share(0.5)("s", 0.5), number(-1, 1)("x", -1)) == (0.5, -1.0)
    for check, value in (
        (whole(1, 3), 0),
        (whole(1, 3), 4),
        (share(0.5), 0.51),
        (number(-1, 1), 2),
    ):
        with pytest.raises(ValueError, match="n "):
            check("n", value)


@pytest.mark.parametrize(
    ("given", "numbers"),
    [("all", range(9)), ("1-3,7", (1, 2, 3, 7)), (4, (4,)), ((0, 8), (0, 8)), ([2, 1], (1, 2)),
     (" 0 - 1 ", (0, 1))],
)  # fmt: skip
def test_blocks_are_numbered_from_0(given, numbers):
    assert block_numbers("blocks", given, 9) == set(numbers)
