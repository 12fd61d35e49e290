"""Data sets on the Hugging Face hub."""

from typing import Any


def load(what: str, *names: str, instead: str, **options: Any) -> Any:
    """`datasets.load_dataset(*names)`, or one sentence that says what works offline."""
    try:
        import datasets

        return datasets.load_dataset(*names, **options)
    except (ImportError, OSError) as error:  # the hub's errors are OSErrors
        raise RuntimeError(
            f"{what} needs the `datasets` package (pip install datasets) and a "
            f"connection to the Hugging Face hub; {instead} need neither "
            f"({type(error).__name__})."
        ) from error
