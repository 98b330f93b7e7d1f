"""A photo kept open: the first edit to the bit, later ones from what is kept."""

import operator
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from contract import Stop, of_classes, stepping, stop_at
from peft import LoraConfig
from tiny import arguments, make_mask, make_photo, make_pipe

from hilotoken import HiLo, Refresh, compress
from hilotoken.arguments import mask_name, photo_name
from hilotoken.bench.measure.flops import flops_by_pass
from hilotoken.memory import Memory, bytes_of, fingerprint, weights_of

WHOLE = HiLo(dilate=1, detail=1.0, coarse=0, refresh=(0, 2))
SAMPLED = HiLo(dilate=1, detail=0.05, bucket=8, context="sampled", refresh=(0, 2))
NAMES = ["FluxFillPipeline", "QwenImageEditInpaintPipeline", "FluxInpaintPipeline"]
FAMILIES = of_classes(NAMES)
ELSEWHERE = (150, 30, 200, 80)


def opened(edit, method=WHOLE, **options):
    """A session on a pipeline of the table, its mask, and the other arguments."""
    given = edit.arguments()
    fast = compress(edit.pipe, method)
    photo, mask = given.pop(photo_name(edit.pipe)), given.pop(mask_name(edit.pipe))
    del given["generator"]
    return fast, fast.open(photo, **options), mask, given


def velocities(edit, run):
    """What the run gives, and the velocity of every step."""
    with stepping(edit.pipe) as seen:
        output = run()
    return output, [step.velocity for step in seen]


def moved(edit, mask):
    other = make_mask(box=ELSEWHERE)
    return other.resize(mask.size)


@FAMILIES
def test_the_first_edit_and_every_later_one_equal_an_edit_from_nothing(edit):
    fast, session, mask, given = opened(edit)
    for each, seed in ((mask, 7), (moved(edit, mask), 7), (mask, 8)):
        generator = torch.Generator().manual_seed(seed)
        names = photo_name(edit.pipe), mask_name(edit.pipe)
        alone = given | dict(zip(names, (session.photo, each), strict=True))
        expected = fast(**alone, generator=generator).images
        found = session.edit(each, seed=seed, **given).images
        assert torch.equal(found, expected)
    assert session.last_run.reused["latents"] == 1
    assert session.last_run.reused["prompts"] == 1
    assert session.last_run.reused["context"] == 0
    session.close()
    assert session.bytes == 0


@pytest.mark.parametrize("method", [WHOLE, SAMPLED], ids=["whole", "sampled"])
@of_classes([*NAMES, "ZImageInpaintPipeline"])
def test_a_context_lent_to_the_same_edit_changes_nothing(edit, method):
    _, session, mask, given = opened(edit, method, reuse_context=True)
    pair = [session.edit(mask, seed=7, **given).images for _ in range(2)]
    assert session.last_run.reused["context"] == 1
    edit_N = session.last_run.plan.edit_N
    first, second = (edit.family.tokens(edit.pipe, x)[:, edit_N] for x in pair)
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)


@FAMILIES
def test_an_edit_under_another_mask_takes_what_is_context_both_times(edit):
    _, session, mask, given = opened(edit, reuse_context=True)
    session.edit(mask, seed=7, **given)
    session.edit(moved(edit, mask), seed=7, **given)
    lent = session.last_run.reused["context"]
    assert 0.5 < lent < 1  # what was edited before is computed
    for changes in ({"seed": 8}, {"seed": 7, "num_inference_steps": 4}):
        session.edit(moved(edit, mask), **given | changes)
        assert session.last_run.reused["context"] == 0


def test_what_is_lent_and_what_is_computed_are_the_whole_context():
    pipe = make_pipe("tiny")
    given = arguments()
    photo, mask = given.pop("image"), given.pop("mask_image")
    del given["generator"]
    for method in (WHOLE, SAMPLED):
        with compress(pipe, method).open(photo, reuse_context=True) as session:
            session.edit(mask, seed=7, **given)
            kept = {id(c) for _, c in session.memory.of_kind("context")}
            session.edit(make_mask(box=(0, 0, 200, 200)), seed=7, **given)
            names = [c.names_X for _, c in session.memory.of_kind("context") if id(c) not in kept]
            run = session.last_run
        context_X = run.plan.keep_K[~run.plan.edit_N[run.plan.keep_K]]
        assert sorted(names[0].tolist()) == context_X.tolist()


@FAMILIES
def test_variations_share_the_context_of_the_first(edit):
    _, session, mask, given = opened(edit)
    results = [output.images for output in session.variations(mask, 3, seed=7, **given)]
    assert session.last_run.reused["context"] == 1
    assert not session.memory.of_kind("context")  # for these three alone
    _, session, mask, given = opened(edit)
    assert torch.equal(results[0], session.edit(mask, seed=7, **given).images)
    edited = [edit.family.tokens(edit.pipe, x)[:, session.last_run.plan.edit_N] for x in results]
    assert not any(torch.allclose(a, b, atol=0.1) for a, b in pairwise(edited))


@of_classes(["FluxFillPipeline"])
def test_variations_are_of_the_photo_as_it_was_when_they_began(edit):
    def second(meanwhile):
        _, session, mask, given = opened(edit)
        made = session.variations(mask, 2, seed=7, **given)
        next(made)
        meanwhile(session)
        return next(made).images

    other = lambda session: session.accept(make_photo(seed=5))  # noqa: E731
    assert torch.equal(second(other), second(lambda session: None))


@pytest.mark.parametrize("part", ["transformer", "vae.encoder"])
def test_weights_that_change_behind_the_back_of_autograd_are_noticed(part):
    pipe, given = make_pipe("tiny"), arguments()  # its own: weights change
    photo, mask = given.pop("image"), given.pop("mask_image")
    del given["generator"]
    fast = compress(pipe, WHOLE)
    session = fast.open(photo, reuse_context=True)
    session.edit(mask, seed=7, **given)
    weight = next(iter(operator.attrgetter(part)(pipe).parameters()))
    weight.data += 0.1  # as a LoRA is fused
    found = session.edit(mask, seed=7, **given).images
    assert torch.equal(found, fast.open(photo).edit(mask, seed=7, **given).images)


@of_classes(["FluxFillPipeline"])
def test_a_further_variation_costs_what_the_edit_tokens_alone_do(edit):
    _, session, mask, given = opened(edit)
    made = session.variations(mask, 2, seed=7, **given)
    first, second = (flops_by_pass(lambda: next(made), edit.pipe.transformer) for _ in range(2))
    assert first[0] > 1.5 * first[1]  # a refresh, and a step between
    assert second == pytest.approx([first[1]] * 3, rel=0.05)


def test_a_result_becomes_the_photo_and_its_change_alone_is_encoded():
    session = compress(make_pipe("tiny"), WHOLE).open(make_photo())
    given = arguments(output_type="pil")
    mask = given["mask_image"]
    given = {k: v for k, v in given.items() if k not in ("image", "mask_image", "generator")}
    first = session.edit(mask, seed=1, **given).images[0]
    session.accept(first)
    session.edit(make_mask(box=ELSEWHERE), seed=1, **given)
    assert 0 < session.last_run.encoded < 1
    assert np.array_equal(np.asarray(session.undo()), np.asarray(make_photo()))
    with pytest.raises(ValueError, match="nothing was accepted"):
        session.undo()
    with pytest.raises(ValueError, match="100x100"):
        session.accept(make_photo(100, 100))


@of_classes(["FluxFillPipeline"])
def test_a_session_survives_an_edit_that_is_broken_off(edit):
    _, session, mask, given = opened(edit, reuse_context=True)
    handle = edit.pipe.transformer.register_forward_pre_hook(stop_at(2))
    with pytest.raises(Stop):
        session.edit(mask, seed=7, **given)
    handle.remove()
    assert not session.memory.of_kind("context")
    found = session.edit(mask, seed=7, **given).images
    _, other, mask, given = opened(edit)
    assert torch.equal(found, other.edit(mask, seed=7, **given).images)


@of_classes(["FluxFillPipeline"])
def test_sessions_on_one_pipeline_and_their_threads_do_not_mix(edit):
    sessions = [opened(edit), opened(edit)]
    _, one, mask, given = sessions[0]
    one.edit(mask, seed=7, **given)
    assert sessions[1][1].bytes == 0
    found: list[str] = []

    def elsewhere() -> None:
        _, other, mask, given = sessions[1]
        try:
            other.edit(mask, seed=7, **given)
        except RuntimeError as error:
            found.append(str(error))

    def during(*_: object) -> None:
        if not found:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()

    handle = edit.pipe.transformer.register_forward_pre_hook(during)
    one.edit(mask, seed=8, **given)
    handle.remove()
    assert "in a compressed call already" in found[0]
    assert sessions[1][1].bytes == 0


@of_classes(["FluxFillPipeline"])
def test_a_closed_session_and_what_it_cannot_do_are_refused(edit):
    fast, session, mask, given = opened(edit)
    photo = session.photo
    with session:
        session.edit(mask, **given)
        for wrong in ({"image": make_photo()}, {"seed": 1, "generator": torch.Generator()}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                session.edit(mask, **given | wrong)
        with pytest.raises(ValueError, match="count"):
            session.variations(mask, 0, **given)
    assert session.bytes == 0
    with pytest.raises(ValueError, match="closed"):
        session.edit(mask, **given)
    with pytest.raises(ValueError, match="offload"):
        compress(edit.pipe, HiLo()).open(make_photo(), offload=True)
    for several in (lambda: fast.open([photo]), lambda: fast.open(photo).accept([photo])):
        with pytest.raises(TypeError, match="one photo, got 1"):
            several()
    for method, why in (
        (HiLo(), "keeps no context"),
        (HiLo(refresh=(0, 2)), "coarse"),
        (HiLo(coarse=0, refresh=Refresh((0, 2), blocks="0")), "some blocks"),
    ):
        with pytest.raises(ValueError, match=why):
            compress(edit.pipe, method).open(make_photo(), reuse_context=True)
    with pytest.raises(ValueError, match="memory"):
        fast.open(make_photo(), memory=-1)


def test_memory_is_bounded_and_what_was_used_longest_ago_goes():
    memory = Memory(1000)
    for name in "abc":
        memory.put((name,), torch.zeros(100))
        memory.get(("a",))
    assert memory.get(("b",)) is None
    assert memory.bytes == 800
    memory.put(("large",), torch.zeros(1000))
    assert memory.bytes == 800
    shared = torch.zeros(10)
    assert bytes_of({"one": shared, "two": [shared, (torch.zeros(5),)]}) == 60


def test_the_scale_of_an_adapter_and_its_absence_are_noticed():
    model = make_pipe("tiny").transformer
    model.add_adapter(LoraConfig(target_modules=["to_q"]), "one")
    changes = (
        lambda: None,
        lambda: model.set_adapters("one", 0.5),
        lambda: model.disable_adapters(),
    )
    found = []
    for change in changes:
        change()
        found.append(weights_of(model))
        assert weights_of(model) == found[-1]
    assert len(set(found)) == 3


def test_a_fingerprint_is_of_the_content():
    one = {"prompt": "a", "x": torch.arange(4), "image": make_photo(), "a": np.ones(2)}
    assert fingerprint(one) == fingerprint(one | {"x": torch.arange(4)})
    for other in ({"prompt": "b"}, {"x": torch.arange(4.0)}, {"image": make_photo(seed=1)}):
        assert fingerprint(one | other) != fingerprint(one)
    coloured = [make_photo().convert("P") for _ in range(2)]
    coloured[1].putpalette(bytes(range(256)) * 3)
    assert len({fingerprint(each) for each in coloured}) == 2
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    assert fingerprint(object()) is None
