"""The pairs from LibreOffice's help: what is committed, and how pages become pairs."""

import lzma
import shutil

import pytest

from examples.data import translation
from examples.data.libreoffice import build_libreoffice


@pytest.fixture(scope="module")
def split():
    return translation.libreoffice_split()


def test_whole_pages_are_held_out(split):
    assert len(split.train) + len(split.valid) == 29_851
    train, valid = ({pair.origin for pair in part} for part in split)
    assert len(train) + len(valid) == len(train | valid) == 2_284
    assert 1 / 20 < len(split.valid) / len(split.train) < 1 / 12


def test_every_pair_has_both_sides_and_no_side_comes_twice(split):
    pairs = split.train + split.valid
    assert all(pair.english.strip() and pair.french.strip() for pair in pairs)
    for side in range(2):
        assert len({pair[side].lower() for pair in pairs}) == len(pairs)
    assert all(pair.english != pair.french for pair in pairs)


def test_known_sentences_are_aligned(split):
    french = {pair.english: pair.french for pair in split.train + split.valid}
    assert french["Save your spreadsheet."] == "Enregistrez le classeur."
    assert (
        french["Opens the object in edit mode."] == "Ouvre l'objet en mode d'édition."
    )


ENGLISH = """
<html><head><title>No title of a page</title></head><body>
<h1 id="hd_1">Saving the Whole Document Again and Again</h1>
<p id="par_1">Press <span id="x"><span hidden="true" class="MAC">Command</span>
<span hidden="true">Ctrl</span></span>+S to save. Then close the window of it.</p>
<p id="par_2">A paragraph that was not translated at all.</p>
<p id="par_3">An id that comes twice here.</p><p id="par_3">And so it is left out.</p>
<p>A note that has no id of its own.<br>It has two lines.</p>
<footer><p>This is said to developers alone.</p></footer></body></html>
"""
FRENCH = """
<html><head><title>Aucun titre de page</title></head><body>
<h1 id="hd_1">Enregistrer tout le document encore et encore</h1>
<p id="par_1">Appuyez sur <span id="x"><span hidden="true" class="MAC">Commande</span>
<span hidden="true">Ctrl</span></span>+S pour enregistrer. Puis fermez sa fenêtre.</p>
<p id="par_2">A paragraph that was not translated at all.</p>
<p id="par_3">Un identifiant qui ne vient qu'une fois.</p>
<p>Une note sans identifiant.<br>Elle a deux lignes.</p>
<footer><p>Ceci est pour les développeurs seuls.</p></footer></body></html>
"""


@pytest.fixture
def root(tmp_path):
    for language, page in (("en-US", ENGLISH), ("fr", FRENCH)):
        folder = tmp_path / build_libreoffice.HELP / language / "text" / "swriter"
        folder.mkdir(parents=True)
        (folder / "saving.html").write_text(page, encoding="utf-8")
    (folder / "french_only.html").write_text(FRENCH, encoding="utf-8")
    return tmp_path


def test_paragraphs_of_one_id_are_split_into_sentences_and_paired(
    root, tmp_path, capsys
):
    build_libreoffice.main(tmp_path / "out", root)
    pairs, pages = (
        lzma.decompress((tmp_path / "out" / f"libreoffice.{name}.xz").read_bytes())
        .decode()
        .splitlines()
        for name in ("tsv", "sources.txt")
    )
    assert [pair.split("\t") for pair in pairs] == [
        [
            "Saving the Whole Document Again and Again",
            "Enregistrer tout le document encore et encore",
        ],
        ["Press Ctrl+S to save.", "Appuyez sur Ctrl+S pour enregistrer."],
        ["Then close the window of it.", "Puis fermez sa fenêtre."],
        ["A note that has no id of its own.", "Une note sans identifiant."],
        ["It has two lines.", "Elle a deux lignes."],
    ]
    assert set(pages) == {"swriter/saving"}
    assert len(pages) == len(pairs)
    assert "'untranslated': 1" in capsys.readouterr().out


def test_a_folder_without_the_help_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected the unpacked help, found no folder"):
        build_libreoffice.main(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_without_debians_tools_the_program_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SystemExit, match="found no apt-get and no dpkg-deb: unpack"):
        build_libreoffice.unpack(tmp_path)
