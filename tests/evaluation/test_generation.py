from pathlib import Path

import pytest
import torch

from depthcut.errors import SettingsError
from depthcut.evaluation.generation import generate, generate_all
from depthcut.model.continuations import encode_prompt
from depthcut.model.loading import LoadedModel, from_memory
from depthcut.model.positions import learned_positions
from tests.evaluation.models_for_tests import tiny
from tests.tiny import build_tiny, tiny_tokenizer


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return tiny(tmp_path)


def greedy_ids(loaded: LoadedModel, prompt: str, new_tokens: int) -> list[int]:
    """Token by token, without a cache."""
    ids = encode_prompt(loaded, prompt, new_tokens=new_tokens)["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(new_tokens):
            token = loaded.model(input_ids=ids).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, token], 1)
            if token.item() == 256:
                break
    found: list[int] = ids[0, start:].tolist()
    return found


def test_the_stream_is_the_greedy_continuation(loaded: LoadedModel) -> None:
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    expected = tokenizer.decode(greedy_ids(loaded, "Hello", 12), skip_special_tokens=True)
    assert "".join(generate(loaded, "Hello", new_tokens=12)) == expected
    (generation,) = generate_all({"a": loaded}, ["Hello"], new_tokens=12)["a"]
    assert generation.text == expected


def test_the_checkpoints_own_sampling_settings_are_overruled(loaded: LoadedModel) -> None:
    plain = generate_all({"a": loaded}, ["Hello"], new_tokens=12)
    settings = loaded.model.generation_config
    assert settings is not None
    settings.do_sample, settings.temperature, settings.top_k = True, 0.6, 20
    settings.repetition_penalty, settings.no_repeat_ngram_size = 5.0, 2
    assert generate_all({"a": loaded}, ["Hello"], new_tokens=12) == plain


def test_a_prompt_goes_through_the_chat_template_where_there_is_one(tmp_path: Path) -> None:
    model = build_tiny("llama")
    chat = from_memory(model, tiny_tokenizer(tmp_path))
    plain = from_memory(model, tiny_tokenizer(tmp_path, chat_template=False))
    lengths = {}
    for name, loaded in {"chat": chat, "plain": plain}.items():
        ids = encode_prompt(loaded, "Hello", new_tokens=1)["input_ids"][0].tolist()
        assert loaded.tokenizer is not None
        lengths[name] = loaded.tokenizer.decode(ids)
    assert lengths["plain"] == "Hello"
    assert lengths["chat"] == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_closing_the_stream_stops_the_model(loaded: LoadedModel) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = loaded.model.register_forward_hook(count)
    stream = generate(loaded, "Hello", new_tokens=400)
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    handle.remove()
    assert calls < 300


def test_an_error_of_the_model_reaches_the_caller(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(loaded.model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        list(generate(loaded, "Hello", new_tokens=4))


def test_prompts_longer_than_the_learned_positions_are_refused(tmp_path: Path) -> None:
    model = build_tiny("gpt2", max_position_embeddings=64)
    loaded = from_memory(model, tiny_tokenizer(tmp_path, chat_template=False))
    with pytest.raises(SettingsError, match="need 65 positions, the model has 64"):
        next(generate(loaded, "x" * 25, new_tokens=40))
    assert len(list(generate(loaded, "x" * 24, new_tokens=40))) > 0


@pytest.mark.parametrize(("model_type", "limit"), [("gpt2", 512), ("opt", 512), ("llama", None)])
def test_only_models_that_learned_positions_have_a_limit(
    model_type: str, limit: int | None
) -> None:
    assert learned_positions(from_memory(build_tiny(model_type), None)) == limit


def test_a_model_without_tokenizer_cannot_be_prompted() -> None:
    with pytest.raises(SettingsError, match="no tokenizer"):
        next(generate(from_memory(build_tiny("llama"), None), "Hello", new_tokens=4))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "opt"])
def test_prompts_together_give_what_each_gives_alone(model_type: str, tmp_path: Path) -> None:
    # Left padding must count nowhere: not in positions, not in attention, not in the text.
    loaded = from_memory(build_tiny(model_type), tiny_tokenizer(tmp_path, chat_template=False))
    prompts = ("a", "a much longer prompt than the first", "three words here")
    alone = [generate_all({"m": loaded}, (each,), new_tokens=12)["m"][0] for each in prompts]
    together = generate_all({"m": loaded}, prompts, new_tokens=12)["m"]
    assert list(together) == alone


def test_the_tokens_are_those_of_the_model_with_what_it_read(loaded: LoadedModel) -> None:
    prompts = ["Hello", "Something else"]
    found = generate_all({"a": loaded}, prompts, new_tokens=12)["a"]
    for prompt, generation in zip(prompts, found, strict=True):
        read = encode_prompt(loaded, prompt, new_tokens=1)["input_ids"][0].tolist()
        assert generation.prompt_ids == tuple(read)
        assert generation.ids == tuple(greedy_ids(loaded, prompt, 12))
        assert not generation.ended


def test_a_text_ends_where_the_model_ends_it_and_what_pads_it_is_not_its(
    loaded: LoadedModel,
) -> None:
    # What the model writes sixth to the first prompt ends a text from now on, and so does a token
    # that it never writes.
    prompts = ["Hello", "Something else"]
    plain = generate_all({"a": loaded}, prompts, new_tokens=12)["a"]
    settings, end = loaded.model.generation_config, plain[0].ids[5]
    assert settings is not None
    settings.eos_token_id = [263, end]
    found = generate_all({"a": loaded}, prompts, new_tokens=12)["a"]
    for before, after in zip(plain, found, strict=True):
        length = before.ids.index(end) if end in before.ids else 12
        assert after.ids == before.ids[:length]
        assert after.ended == (end in before.ids)
    assert {each.ended for each in found} == {True, False}


def test_an_end_at_once_is_an_empty_text_and_an_end_in_the_last_place_is_an_end(
    loaded: LoadedModel,
) -> None:
    (plain,) = generate_all({"a": loaded}, ["Hello"], new_tokens=12)["a"]
    settings = loaded.model.generation_config
    assert settings is not None
    settings.eos_token_id = plain.ids[0]
    (found,) = generate_all({"a": loaded}, ["Hello"], new_tokens=12)["a"]
    assert (found.text, found.ids, found.ended) == ("", (), True)
    place = next(
        place for place in range(12) if plain.ids[place] not in plain.ids[:place] and place
    )
    settings.eos_token_id = plain.ids[place]
    (found,) = generate_all({"a": loaded}, ["Hello"], new_tokens=place + 1)["a"]
    assert (found.ids, found.ended) == (plain.ids[:place], True)


def test_a_model_that_knows_no_end_never_ends(tmp_path: Path) -> None:
    loaded = from_memory(build_tiny("llama"), tiny_tokenizer(tmp_path))
    settings = loaded.model.generation_config
    assert settings is not None
    assert loaded.tokenizer is not None
    settings.eos_token_id = loaded.tokenizer.eos_token = None
    (found,) = generate_all({"a": loaded}, ["Hello"], new_tokens=5)["a"]
    assert len(found.ids) == 5
    assert not found.ended
