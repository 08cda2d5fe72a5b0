"""The prompts whose continuations are shown side by side."""

from pathlib import Path

from depthcut.errors import SourceError, TextError

DEFAULT_PROMPTS = (
    "Hello! Who are you, and what can you help me with?",
    "What is the capital of Australia, and on which continent does it lie?",
    "Explain in two sentences why the sky is blue.",
    "Tom has 12 apples. He gives away 5 and then buys 3 more. How many apples does he have now?",
    "All cats are animals. Mia is a cat. What can you conclude about Mia, and why?",
    "Write a Python function that returns True if a word reads the same backwards.",
    "List five different fruits, one per line, without repeating any.",
    "Translate into French: The train leaves at seven o'clock tomorrow morning.",
    "Summarise in one sentence: Bees visit flowers to collect nectar. Pollen sticks to their "
    "legs and is carried to the next flower, which lets plants make seeds.",
    "Tell a very short story about a lighthouse keeper who finds a letter in a bottle.",
)
"""Chat, knowledge, explanation, arithmetic, deduction, code, repetition, translation,
faithfulness to a given text, and a story: where a model that lost layers fails first."""


def read_prompts(file: str | None) -> tuple[str, ...]:
    r"""The prompts of a file, one a line (`\n` in a line stands for a line break), or the default.

    Raises:
        SourceError: The file is missing or cannot be read.
        TextError: It is not UTF-8, or holds no prompt.
    """
    if file is None:
        return DEFAULT_PROMPTS
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"--prompts {file} is not UTF-8 text: save it as UTF-8") from error
    except FileNotFoundError as error:
        raise SourceError(
            f"no file {file}: --prompts wants a text file, one prompt a line"
        ) from error
    except OSError as error:
        raise SourceError(f"cannot read --prompts {file}: {error.strerror}") from error
    prompts = tuple(line.strip().replace(r"\n", "\n") for line in text.splitlines() if line.strip())
    if not prompts:
        raise TextError(f"--prompts {file} holds no prompt: write one a line")
    return prompts
