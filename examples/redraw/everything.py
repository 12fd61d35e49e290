"""Makes every committed report, table and figure again: `python -m examples.redraw`.

From committed files and nothing else: the summaries and logs below examples/results and
the curves below examples/checkpoints. With --check nothing is written; a text that
would differ, a figure of other numbers, a missing or a left-over file ends the program.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import tyro

from examples.convergence import by_setting, wall_time
from examples.convergence import report as convergence
from examples.factors import report as factors
from examples.finetune_t5 import report as finetune_t5
from examples.heterogeneity import report as heterogeneity
from examples.heterogeneity import verdict as heterogeneity_verdict
from examples.lab import command_line, looks
from examples.pretrain import model_card
from examples.redraw import blocks, lead
from examples.sharpness import carriers, hero
from examples.sharpness import report as sharpness
from examples.sharpness import verdict as sharpness_verdict
from examples.stability import report as stability

ROOT = Path(__file__).parents[2]

# Pattern of folders -> what makes the files of one of them, and returns their paths.
MAKERS: Mapping[str, Callable[[Path], list[Path]]] = {
    "examples/results/sharpness/*/summary.json": sharpness.remake,
    "examples/results/heterogeneity/*/summary.json": heterogeneity.remake,
    "examples/results/convergence/*/settings.json": convergence.write,
    **{
        f"examples/results/{name}/*/settings.json": convergence.write
        for name in by_setting.DIFFERING
    },
    "examples/results/long_training/*/settings.json": convergence.write,
    "examples/results/wall_time/*/settings.json": wall_time.write,
    "examples/results/factors/settings.json": factors.write,
    "examples/results/stability/*/settings.json": stability.write,
    "examples/results/finetune_t5/summary.json": finetune_t5.write,
    "examples/results/concentration/concentration.json": hero.write,
    "examples/results/learning_rates.json": lead.draw,
    "examples/checkpoints/*/loss.csv": model_card.draw,
}
VERDICTS: Mapping[str, Callable[[Path], Path]] = {
    "examples/results/sharpness": sharpness_verdict.main,
    "examples/results/heterogeneity": heterogeneity_verdict.main,
}
READ = (
    "examples/results",
    "examples/checkpoints",
    "benchmarks/results",
    "docs/concepts",
    "docs/how-to",
    "docs/papers",
    "docs/start",
    "README.md",
)


def make(root: Path) -> list[Path]:
    """Makes everything in a checkout, or in a copy of what `READ` names."""
    made: list[Path] = []
    for pattern, maker in MAKERS.items():
        for path in sorted(root.glob(pattern)):
            made += maker(path.parent)
    made += [verdict(root / folder) for folder, verdict in VERDICTS.items()]
    results = root / "examples/results"
    made += carriers.draw(results / "sharpness")
    folders = [results / name for name in by_setting.DIFFERING]
    for folder in filter(Path.is_dir, folders):
        made += by_setting.main(folder)
    return [*made, *blocks.write(root)]


def differences(committed: Path, again: Path, made: list[Path]) -> Iterator[str]:
    """Says of each file that is not the same in two folders what is wrong with it."""
    names = {path.relative_to(again) for path in made}
    for name in sorted(names):
        old, new = committed / name, again / name
        if not old.is_file():
            yield f"{name} is missing."
        elif name.suffix == ".png":
            if looks.drawn(old) != looks.drawn(new):
                yield f"{name} shows other numbers or words than its files have."
        elif old.read_text() != new.read_text():
            yield f"{name} says something else than its files do."
    for pattern in ("*.png", "report.md", "verdict.md", "factors.md"):
        for path in sorted((committed / "examples/results").rglob(pattern)):
            if path.relative_to(committed) not in names:
                yield f"{path.relative_to(committed)} is made by nothing."


def in_a_copy(root: Path) -> tuple[list[str], int]:
    """Makes everything in a copy; returns the differences and the number of files.

    Figures of the same numbers are not drawn again, which would take a minute.
    """
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary)
        for name in READ:
            source = root / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("*.safetensors")
                shutil.copytree(source, again / name, ignore=ignored)
            elif source.is_file():
                shutil.copy(source, again / name)
        made = make(again)
        return list(differences(root, again, made)), len(made)


def main(*, check: bool = False) -> None:
    """Makes everything again.

    Args:
        check: write nothing, and fail where something would change.
    """
    if not check:
        print(*(path.relative_to(ROOT) for path in make(ROOT)), sep="\n")
        return
    found, made = in_a_copy(ROOT)
    if found:
        raise ValueError("\n".join([*found, "Run `python -m examples.redraw`."]))
    print(f"{made} files are what they would be made again.")


def cli() -> None:
    with command_line.refusals("redraw"):
        tyro.cli(main, prog="python -m examples.redraw")
