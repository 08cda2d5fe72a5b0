import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import processors

from depthcut import api, cli, generating
from depthcut.errors import OutputError, SettingsError, TextError
from depthcut.evaluation.generation import generate_all
from depthcut.generating import write_own_text
from depthcut.model.loading import LoadedModel, from_memory
from depthcut.records import OwnText
from depthcut.settings import LoadSettings, OwnTextSettings, SurveySettings, TextSettings
from depthcut.text.documents import Text, open_text
from depthcut.text.sequences import read_sequences
from tests.tiny import END, build_tiny, tiny_tokenizer

ALMOST_GREEDY = 1e-5


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return tiny(tmp_path)


def tiny(folder: Path, *, model_type: str = "llama", chat_template: bool = False) -> LoadedModel:
    model = build_tiny(model_type)
    tokenizer = tiny_tokenizer(folder / "tokenizer", chat_template=chat_template)
    return from_memory(model, tokenizer)


def write(
    loaded: LoadedModel, out: Path, *, prompts: list[str] | Path | None = None, **settings: object
) -> OwnText:
    small = {"tokens": 200, "new_tokens": 12, "batch_size": 5, **settings}
    chosen = OwnTextSettings(**small)  # type: ignore[arg-type]  # by name
    asked: Text | None = None
    if isinstance(prompts, Path):
        asked = open_text(TextSettings(text=str(prompts)))
    elif prompts is not None:
        asked = open_text(TextSettings(), prompts)
    return write_own_text(loaded, asked, chosen, LoadSettings(), out)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_is_a_text_that_can_be_read(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    record = write(loaded, out)
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "tokenizer"]
    assert record.digest == hashlib.sha256(out.read_bytes()).hexdigest()
    settings = TextSettings(text=str(out), context=16)
    text = open_text(settings)
    assert text.digest == record.digest
    assert len(list(text.sources[0].documents())) == record.documents
    assert loaded.tokenizer is not None
    read = read_sequences(text, settings, loaded.tokenizer)
    assert read.facts.tokens > 0
    assert 200 <= record.tokens < 200 + 5 * 12


def test_the_same_seed_gives_the_same_file(loaded: LoadedModel, tmp_path: Path) -> None:
    found = [
        write(loaded, tmp_path / f"{name}.jsonl", seed=seed).digest
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert found[0] == found[1] != found[2]


def test_a_longer_text_begins_as_the_shorter_one(loaded: LoadedModel, tmp_path: Path) -> None:
    write(loaded, tmp_path / "short.jsonl", tokens=100)
    write(loaded, tmp_path / "long.jsonl", tokens=300)
    short, long = ((tmp_path / f"{name}.jsonl").read_bytes() for name in ("short", "long"))
    assert long.startswith(short)
    assert len(long) > len(short)


def test_the_generators_of_others_go_on_as_if_nothing_had_been(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    expected = torch.rand(2).tolist()
    torch.manual_seed(1)
    first = torch.rand(1)
    write(loaded, tmp_path / "own.jsonl")
    assert [first.item(), torch.rand(1).item()] == expected


def first_bytes(loaded: LoadedModel, out: Path, **settings: object) -> dict[str, float]:
    """How often each character comes first, in 4,000 texts of one token."""
    write(loaded, out, tokens=4000, new_tokens=1, batch_size=500, **settings)
    counts = Counter(str(line["text"]) for line in lines(out))
    return {text: count / 4000 for text, count in counts.items()}


def chances(loaded: LoadedModel, temperature: float) -> dict[str, float]:
    """The model's own distribution over characters and special tokens, behind its first token."""
    assert loaded.tokenizer is not None
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([[256]])).logits[0, -1].double()
    found = (logits / temperature).softmax(-1).tolist()
    return {loaded.tokenizer.decode([token]): found[token] for token in range(260) if token != 256}


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, 1.0),
        ({"temperature": 0.5}, 0.5),
        ({"temperature": 0.5, "first_temperature": 1.5, "first_tokens": 3}, 1.5),
    ],
)
def test_tokens_are_drawn_from_the_model_s_own_distribution(
    loaded: LoadedModel, tmp_path: Path, settings: dict[str, float], temperature: float
) -> None:
    own = loaded.model.generation_config
    assert own is not None
    own.do_sample, own.temperature, own.top_k, own.top_p = True, 0.1, 3, 0.3
    own.min_p, own.repetition_penalty, own.typical_p = 0.4, 5.0, 0.2
    found = first_bytes(loaded, tmp_path / "own.jsonl", **settings)
    assert "<|im_start|>" in found
    for text, chance in chances(loaded, temperature).items():
        if text.isascii() and text.strip():
            error = math.sqrt(chance * (1 - chance) / 4000)
            assert abs(found.get(text, 0) - chance) < 5 * error + 1e-3, text


def test_top_p_leaves_the_likeliest_only(loaded: LoadedModel, tmp_path: Path) -> None:
    found = first_bytes(loaded, tmp_path / "own.jsonl", top_p=0.2)
    expected = sorted(chances(loaded, 1.0).values(), reverse=True)
    assert 0 < len(found) <= next(n for n in range(256) if sum(expected[:n]) > 0.2)


def test_the_temperature_goes_in_a_line_from_the_first_token_to_the_last() -> None:
    settings = OwnTextSettings(temperature=0.5, first_temperature=1.5, first_tokens=4)
    cooling = generating._Cooling(settings, 3)
    reached = []
    for done in range(6):
        scores = cooling(torch.zeros(1, 3 + done, dtype=torch.int64), torch.ones(1, 1))
        reached.append(settings.temperature / scores.item())
    assert reached == pytest.approx([1.5, 1.25, 1.0, 0.75, 0.5, 0.5])


def test_answers_to_prompts_are_chats(tmp_path: Path) -> None:
    loaded = tiny(tmp_path, chat_template=True)
    prompts = ["Hi", "A longer prompt than the first one", "Why?\nSay."]
    out = tmp_path / "own.jsonl"
    record = write(loaded, out, prompts=prompts, tokens=24, temperature=ALMOST_GREEDY, batch_size=3)
    greedy = generate_all({"m": loaded}, prompts, new_tokens=12)["m"]
    assert lines(out) == [
        {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer.text.rstrip("\ufffd")},
            ]
        }
        for prompt, answer in zip(prompts, greedy, strict=True)
    ]
    assert record.documents == 3
    settings = TextSettings(text=str(out), context=16)
    assert loaded.tokenizer is not None
    assert read_sequences(open_text(settings), settings, loaded.tokenizer).facts.tokens > 36


def test_a_chat_is_answered_behind_all_that_was_said(tmp_path: Path) -> None:
    loaded = tiny(tmp_path, chat_template=True)
    said = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [*said, {"role": "assistant", "content": "old"}]}))
    write(loaded, tmp_path / "own.jsonl", prompts=path, tokens=5)
    (line,) = lines(tmp_path / "own.jsonl")
    messages = line["messages"]
    assert isinstance(messages, list)
    assert messages[:-1] == said
    assert messages[-1]["content"] != "old"


def test_without_a_template_prompts_are_continued(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    write(loaded, out, prompts=["abc"], tokens=5, temperature=ALMOST_GREEDY)
    (answer,) = generate_all({"m": loaded}, ["abc"], new_tokens=12)["m"]
    assert lines(out) == [{"text": f"abc{answer.text}".rstrip("\ufffd")}]


def test_chats_for_a_model_without_a_template_are_refused_and_leave_nothing(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TextError, match="no chat template: choose a plain text column"):
        write(loaded, tmp_path / "own.jsonl", prompts=path)
    assert sorted(tmp_path.iterdir()) == before


def test_prompts_that_end_early_are_told(
    loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = write(loaded, tmp_path / "own.jsonl", prompts=["a", "b"], tokens=10**6)
    assert record.documents == 2
    assert f"the prompts ended: {record.tokens} tokens of the 1000000" in caplog.text


def test_prompts_longer_than_the_model_takes_are_left_out_and_told(
    loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = ["x" * 501, "y" * 500, "z" * 600]
    write(loaded, tmp_path / "own.jsonl", prompts=prompts, tokens=10**6)
    assert [str(line["text"])[0] for line in lines(tmp_path / "own.jsonl")] == ["y"]
    assert "2 prompts were left out: with 12 new tokens they are longer than the 512" in caplog.text


def test_what_the_tokenizer_puts_before_a_text_is_where_it_begins(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<|pad|> <|im_start|> $A {END}",
        special_tokens=[("<|pad|>", 257), ("<|im_start|>", 258), (END, 256)],
    )
    assert generating._beginning(loaded) == ([257, 258], "")


@pytest.mark.parametrize(
    ("own", "config", "end", "expected"),
    [
        (256, None, 256, ([256], "")),
        (258, None, 256, ([258], "<|im_start|>")),
        (None, 257, 256, ([257], "<|pad|>")),
        (None, None, 256, ([256], "")),
    ],
)
def test_a_text_begins_behind_a_token_that_the_model_knows(
    loaded: LoadedModel,
    own: int | None,
    config: int | None,
    end: int | None,
    expected: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_tokens(loaded, own, config, end)
    assert generating._beginning(loaded) == expected
    assert ("no beginning token" in caplog.text) == (own is config is None)


def test_a_model_with_neither_beginning_nor_end_needs_prompts(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    with_tokens(loaded, None, None, None)
    with pytest.raises(SettingsError, match="neither a beginning nor an end token"):
        write(loaded, tmp_path / "own.jsonl")
    record = write(loaded, tmp_path / "own.jsonl", prompts=["a", "b"], tokens=24)
    assert (record.tokens, record.cut) == (24, 2)


def with_tokens(loaded: LoadedModel, own: int | None, config: int | None, end: int | None) -> None:
    tokenizer, generation = loaded.tokenizer, loaded.model.generation_config
    assert tokenizer is not None
    assert generation is not None
    tokenizer.bos_token_id, tokenizer.eos_token_id = own, end
    generation.bos_token_id = loaded.model.config.bos_token_id = config
    generation.eos_token_id = end


def test_ends_are_counted_and_not_written(loaded: LoadedModel, tmp_path: Path) -> None:
    generation = loaded.model.generation_config
    assert generation is not None
    letters = [loaded.tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghijklmnop"]
    generation.eos_token_id = letters
    out = tmp_path / "own.jsonl"
    record = write(loaded, out, tokens=400, new_tokens=3, batch_size=50)
    assert 0 < record.cut < record.documents
    text = "".join(str(line["text"]) for line in lines(out))
    for token in (END, "<|im_start|>", "<|im_end|>", "<|pad|>"):
        text = text.replace(token, "")
    assert not set("abcdefghijklmnop") & set(text)
    assert record.tokens >= 400


def test_a_model_that_writes_nothing_is_told_and_leaves_nothing(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    generation = loaded.model.generation_config
    assert generation is not None
    generation.eos_token_id = list(range(264))
    with pytest.raises(TextError, match="wrote nothing but ends"):
        write(loaded, tmp_path / "own.jsonl")
    with pytest.raises(TextError, match="the prompts hold none that in memory takes"):
        write(loaded, tmp_path / "own.jsonl", prompts=["", "x" * 600])
    assert [each.name for each in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tokens": 0}, "--tokens 0: expected a number of at least 1"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"new_tokens": 0}, "--new-tokens 0"),
        ({"first_tokens": 0}, "--first-tokens 0"),
        ({"temperature": 0.0}, "--temperature 0.0: expected a number above 0"),
        ({"first_temperature": -1.0}, "--first-temperature -1.0"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_p": 1.5}, "--top-p 1.5"),
        ({"top_p": 0.0}, "--top-p 0.0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(
    loaded: LoadedModel, tmp_path: Path, settings: dict[str, float], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        write(loaded, tmp_path / "own.jsonl", **settings)


def test_more_tokens_than_learned_positions_are_refused(tmp_path: Path) -> None:
    loaded = tiny(tmp_path, model_type="gpt2")
    with pytest.raises(SettingsError, match="--new-tokens 512: in memory has 512 positions, and 1"):
        write(loaded, tmp_path / "own.jsonl", new_tokens=512)


def test_only_a_new_jsonl_file_is_written(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"name it \.jsonl"):
        write(loaded, tmp_path / "own.txt")
    (tmp_path / "own.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write(loaded, tmp_path / "own.jsonl")
    assert (tmp_path / "own.jsonl").read_text() == "mine"


@pytest.mark.parametrize("prompts", [None, [f"prompt {number}" for number in range(100)]])
def test_it_goes_on_where_it_stopped_to_the_same_file(
    loaded: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[str] | None,
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "own.jsonl"
    write(loaded, whole, prompts=prompts)
    written, batches = generating._written, []

    def once(*arguments: object) -> object:
        if len(batches) % 2:
            batches.append(0)
            raise KeyboardInterrupt
        batches.append(1)
        return written(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(generating, "_written", once)
    stops = 0
    while not out.exists():
        try:
            write(loaded, out, prompts=prompts)
        except KeyboardInterrupt:
            stops += 1
            assert not out.exists()
    assert stops >= 3
    assert sum(batches) == stops + 1  # nothing was written twice
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "own.jsonl.journal").exists()


def test_what_was_begun_with_other_settings_is_not_gone_on_with(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = generating._written

    def first_only(*arguments: object) -> object:
        monkeypatch.setattr(generating, "_written", interrupted)
        return written(*arguments)  # type: ignore[arg-type]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generating, "_written", first_only)
    with pytest.raises(KeyboardInterrupt):
        write(loaded, tmp_path / "own.jsonl")
    with pytest.raises(OutputError, match="begun with other settings"):
        write(loaded, tmp_path / "own.jsonl", seed=1)
    assert (tmp_path / "own.jsonl.journal").exists()


@pytest.mark.slow
def test_kill_9_loses_one_batch_at_most(tiny_llama: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        options = ["--tokens", "1500", "--new-tokens", "20", "--batch-size", "5"]
        named = ["--from-model", str(tiny_llama), "--out", str(out)]
        return [sys.executable, "-m", "depthcut", "text", *named, *options]

    whole, out = tmp_path / "whole.jsonl", tmp_path / "own.jsonl"
    journal = tmp_path / "own.jsonl.journal"
    subprocess.run(command(whole), check=True, capture_output=True)
    begun = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert begun.poll() is None
        time.sleep(0.002)
    os.kill(begun.pid, signal.SIGKILL)
    begun.wait()
    assert not out.exists()
    assert journal.exists()
    subprocess.run(command(out), check=True, capture_output=True)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == [out, whole]


def test_the_function_and_the_command_write_the_same(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("Hello\nWhat is this?\n")
    prompts = str(tmp_path / "prompts.txt")
    settings = OwnTextSettings(tokens=16, new_tokens=8, batch_size=2, prompts=prompts)
    record = api.generate_text(tiny_llama, tmp_path / "a.jsonl", settings)
    in_memory = api.generate_text(
        tiny_llama,
        tmp_path / "b.jsonl",
        OwnTextSettings(tokens=16, new_tokens=8, batch_size=2),
        prompts=["Hello", "What is this?"],
    )
    with pytest.raises(SystemExit) as caught:
        cli.main(
            ["text", "--from-model", str(tiny_llama), "--out", str(tmp_path / "c.jsonl"),
             "--tokens", "16", "--new-tokens", "8", "--batch-size", "2", "--prompts", prompts]
        )  # fmt: skip
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"2 texts of {tiny_llama}, 2 cut at 8 tokens; 16 tokens in" in out
    assert f"next: depthcut survey {tiny_llama} --text {tmp_path / 'c.jsonl'}" in out
    contents = [(tmp_path / f"{name}.jsonl").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] == contents[2]
    assert record.digest == in_memory.digest
    survey = api.survey(
        tiny_llama, SurveySettings(text=str(tmp_path / "a.jsonl"), context=16, tokens=64)
    )
    assert survey.text.digest == record.digest


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_too_the_same_seed_gives_the_same_file(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    loaded.model.to("cuda")
    torch.manual_seed(1)
    expected = torch.rand(2, device="cuda").tolist()
    torch.manual_seed(1)
    first = torch.rand(1, device="cuda")
    found = [write(loaded, tmp_path / f"{name}.jsonl").digest for name in "ab"]
    assert found[0] == found[1]
    assert [first.item(), torch.rand(1, device="cuda").item()] == expected
    answered = write(loaded, tmp_path / "c.jsonl", prompts=["a", "longer", "x"], tokens=36)
    assert answered.documents > 0
