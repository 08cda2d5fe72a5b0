"""Documents in their publishers' fields, turned into those that lm-eval's prompts name.

Where a publisher's file and the hub's edition of it agree, no function is needed. A document that
has the hub's fields already is left as it is.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from datasets import Dataset

from depthcut.errors import TextError

Document = dict[str, Any]

_FRAGMENT = re.compile(r"^(?P<before>.*[.!?]['\")]*) +(?P<fragment>[a-z][^.!?]*)$", re.DOTALL)
"""A context that ends in a sentence only begun: where its first half ends."""
_MBPP_SHOTS = (2, 3, 4)
_MBPP_TEST = range(11, 511)


def arc(dataset: Dataset) -> Dataset:
    """AI2's {"question": {"stem", "choices": [{"text", "label"}]}} flattened."""

    def flat(document: Document) -> Document:
        question = document["question"]
        if isinstance(question, str):
            return document
        choices = question["choices"]
        return {
            "id": document["id"],
            "question": question["stem"],
            "choices": {
                "text": [choice["text"] for choice in choices],
                "label": [choice["label"] for choice in choices],
            },
            "answerKey": document["answerKey"],
        }

    return _each(dataset, flat)


def boolq(dataset: Dataset) -> Dataset:
    """Google's BoolQ as in SuperGLUE: the title leads the passage, the answer is 0 or 1."""

    def super_glue(document: Document) -> Document:
        if "title" not in document:
            return document
        return {
            "question": document["question"],
            "passage": f"{document['title']} -- {document['passage']}",
            "label": int(document["answer"]),
        }

    return _each(dataset, super_glue)


def hellaswag(dataset: Dataset) -> Dataset:
    """HellaSwag with the two halves of its context apart, then prepared by lm-eval itself.

    lm-eval capitalises the second half, the sentence that the endings finish. A file that holds
    only the two joined (`ctx`) is parted before its last, unfinished sentence: in the ActivityNet
    part that begins in lower case; in the WikiHow part there is none.
    """
    from lm_eval.tasks.hellaswag.utils import process_docs

    def halves(document: Document) -> Document:
        if "ctx_a" in document:
            return document
        parted = _FRAGMENT.match(document["ctx"])
        before, fragment = parted.group("before", "fragment") if parted else (document["ctx"], "")
        return {**document, "ctx_a": before, "ctx_b": fragment}

    prepared: Dataset = process_docs(_each(dataset, halves))
    return prepared


def c4(dataset: Dataset) -> Dataset:
    """A page that was parted into a prefix and its continuation, whole again."""

    def page(document: Document) -> Document:
        if "text" in document:
            return document
        return {"text": document["prefix"] + document["gold_completion"]}

    return _each(dataset, page)


def wikitext_pages(dataset: Dataset) -> Dataset:
    """Lines of WikiText joined to articles, as in EleutherAI/wikitext_document_level.

    An article begins at its title, " = Title = "; what is before the first title is one as well
    unless it is blank.
    """
    pages = ["\n".join(lines) for lines in _articles(dataset["text"])]
    return Dataset.from_dict({"page": [page for page in pages if page.strip()]})


def _articles(lines: Iterable[str]) -> Iterator[list[str]]:
    article: list[str] = []
    for line in lines:
        if re.fullmatch(r"\s*= (?!= ).* =\s*", line):
            yield article
            article = []
        article.append(line)
    yield article


def mbpp_test(dataset: Dataset) -> Dataset:
    """The test part of MBPP (tasks 11 to 510) out of a file that may hold all of it."""
    ids = dataset["task_id"]
    return dataset.select([row for row, task in enumerate(ids) if task in _MBPP_TEST])


def mbpp_shots(dataset: Dataset) -> list[Document]:
    """The three tasks of MBPP that are shown with their answers: 2, 3 and 4.

    Raises:
        TextError: The file does not hold them.
    """
    rows = {task: row for row, task in enumerate(dataset["task_id"]) if task in _MBPP_SHOTS}
    if missing := [task for task in _MBPP_SHOTS if task not in rows]:
        raise TextError(
            f"mbpp shows the tasks 2, 3 and 4 before each question; its file lacks {missing}: "
            "use the publisher's whole mbpp.jsonl"
        )
    return [{**dataset[rows[task]], "is_fewshot": True} for task in _MBPP_SHOTS]


def _each(dataset: Dataset, change: Any) -> Dataset:
    return dataset.map(change, remove_columns=dataset.column_names)
