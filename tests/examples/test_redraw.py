"""Every committed report, table and figure is what its committed files say."""

import json
import shutil

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from examples.lab import looks
from examples.redraw import everything
from examples.sharpness import concentration


def test_every_committed_report_and_figure_is_what_its_files_say():
    differences, made = everything.in_a_copy(everything.ROOT)
    assert not differences
    assert made > 40


@pytest.fixture
def copy(tmp_path):
    """A checkout with one experiment, that was just made."""
    results = tmp_path / "examples" / "results"
    for name in ("sharpness/masked_lm-sgd", "heterogeneity/catalogues-pre_ln"):
        shutil.copytree(everything.ROOT / "examples/results" / name, results / name)
    # Without its log the summary is what it says, and can be changed.
    (results / "sharpness/masked_lm-sgd/metrics.jsonl.xz").unlink()
    (tmp_path / "examples" / "checkpoints").mkdir()
    (tmp_path / "README.md").write_text("# A README without a table\n")
    everything.make(tmp_path)
    assert everything.in_a_copy(tmp_path)[0] == []
    return tmp_path


def test_a_changed_number_is_found_in_texts_and_figures(copy):
    path = copy / "examples/results/sharpness/masked_lm-sgd/summary.json"
    summary = json.loads(path.read_text())
    ratios = summary["epochs"]["2"]["directions"]["adam"]["ratios"]
    ratios[ratios.index(max(ratios))] *= 2
    path.write_text(json.dumps(summary))
    found = everything.in_a_copy(copy)[0]
    folder = "examples/results/sharpness/masked_lm-sgd"
    assert f"{folder}/ratios.png shows other numbers or words than its files have." in (
        found
    )
    assert f"{folder}/report.md says something else than its files do." in found


def test_a_missing_figure_and_one_that_nothing_makes_are_found(copy):
    folder = copy / "examples/results/sharpness/masked_lm-sgd"
    (folder / "ratios.png").rename(folder / "old.png")
    found = everything.in_a_copy(copy)[0]
    assert [sentence.split("/", 3)[3] for sentence in found] == [
        "masked_lm-sgd/ratios.png is missing.",
        "masked_lm-sgd/old.png is made by nothing.",
    ]


def test_a_figure_of_the_same_numbers_is_left_as_it_is(tmp_path):
    def paint(values):
        return lambda figure: figure.subplots().plot(values)

    path = looks.draw(tmp_path / "a.png", paint([1.0, 2.0]))
    path.write_bytes(path.read_bytes() + b"one byte more")
    before = path.read_bytes()
    looks.draw(path, paint([1.0, 2.0 + 1e-9]))
    assert path.read_bytes() == before
    looks.draw(path, paint([1.0, 2.1]))
    assert path.read_bytes() != before


def test_the_hash_of_a_figure_knows_its_numbers_words_and_limits():
    def figure(**changes):
        drawn = {
            "x": [1, 2],
            "title": "a",
            "bar": 3.0,
            "label": "b",
            "top": 5,
            "tick": "e",
        } | changes
        figure = Figure()
        axes = figure.subplots()
        axes.plot(drawn["x"], label=drawn["label"])
        axes.bar(0, drawn["bar"])
        axes.set_title(drawn["title"])
        axes.set_ylim(0, drawn["top"])
        axes.set_xticks([0], [drawn["tick"]])
        return looks.fingerprint(figure)

    with mpl.rc_context({"axes.titlelocation": "left"}):
        changes = [{"x": [1, 3]}, {"title": "c"}, {"bar": 4.0}, {"label": "d"}]
        changes += [{"top": 6}, {"tick": "f"}]
        hashes = {figure(), *(figure(**change) for change in changes)}
        assert len(hashes) == 7
        assert figure() in hashes


def test_what_is_said_of_results_stands_between_its_comments(copy):
    path = copy / "README.md"
    begin, end = (
        "<!-- results: python -m examples.redraw -->",
        "<!-- end of results -->",
    )
    path.write_text(f"before\n{begin}\nstale\n{end}\nafter\n")
    everything.make(copy)
    text = path.read_text()
    assert "stale" not in text
    assert text.startswith(f"before\n{begin}\n| effect |")
    assert text.endswith(f"\n{end}\nafter\n")
    path.write_text(f"{begin}\n")
    with pytest.raises(ValueError, match="expected <!-- end of results --> behind"):
        everything.make(copy)


@pytest.mark.slow
def test_the_heros_numbers_are_measured_with_every_seed(micro_t5, tmp_path):
    settings = concentration.Settings(
        init=str(micro_t5),
        rate=0.1,
        steps=1,
        seeds=2,
        test_size=4,
        batch_size=2,
        out=tmp_path,
    )
    concentration.main(settings, *concentration.prepare(settings))
    found = json.loads((tmp_path / "concentration.json").read_text())
    assert [seed["seed"] for seed in found["seeds"]] == [0, 1]
    for seed in found["seeds"]:
        norms = [row["norm"] for row in seed["top"]]
        assert norms == sorted(norms)
        assert set(seed["curves"]) == {"sgd", "clipped_sgd", "adam"}
    assert found["sessions"][0]["date"] in (tmp_path / "report.md").read_text()
