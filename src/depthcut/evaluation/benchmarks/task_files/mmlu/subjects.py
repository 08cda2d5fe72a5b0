"""MMLU's subjects apart: `subjects.anatomy` keeps the questions on anatomy, and so for each."""

from collections.abc import Callable

from datasets import Dataset


def __getattr__(name: str) -> Callable[[Dataset], Dataset]:
    if name.startswith("_"):
        raise AttributeError(name)

    def of_subject(dataset: Dataset) -> Dataset:
        subjects = dataset["subject"]
        return dataset.select([row for row, subject in enumerate(subjects) if subject == name])

    return of_subject
