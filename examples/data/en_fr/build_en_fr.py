#!/usr/bin/env python3
"""Builds English-French pairs from gettext catalogues (.po or .mo); needs polib.

usage: build_en_fr.py OUT.tsv LABEL=path/to/fr.po [LABEL=path ...]

Writes OUT.tsv (English<TAB>French, UTF-8, one pair a line) and OUT.sources.txt (the
label of each line).
"""
# ruff: noqa: RUF001 (quotes and dashes that look alike are what this program is about)

import collections
import os
import re
import sys

MIN, MAX = 3, 64  # whitespace tokens, both sides
BAD = re.compile(r"[${}|%\\=@~#*_^<>\[\]]|https?:|www\.|\.(cfg|png|lua|txt)\b")
ABBR = re.compile(
    r'(?:^|[\s(\'"«])(?:M|MM|Mr|Mrs|Ms|Dr|St|Ste|Mme|Mlle|cf|etc|ex|vs|No|p|[A-Z])\.$'
)
SPLIT = re.compile(
    r'([.!?…]+(?:\s?["»\')]+)?)\s+'
    r'(?=(?:["«\'(]\s?|[-–—]\s?)?[A-ZÀÂÄÇÉÈÊËÎÏÔÖÙÛÜŒÆ0-9])'
)


def norm(s):
    s = re.sub(r"<[^<>]*>|\[/?[a-z]{1,8}\]", "", s)
    for a, b in (
        ("\u00a0", " "),
        ("\u202f", " "),
        ("\u2009", " "),
        ("\u00ad", ""),
        ("\u200b", ""),
        ("’", "'"),
        ("‘", "'"),
        ("ʼ", "'"),
        ("“", '"'),
        ("”", '"'),
        ("„", '"'),
        ("…", "..."),
        ("\r", ""),
    ):
        s = s.replace(a, b)
    return s


def squash(s):
    return re.sub(r"\s+", " ", s).strip()


def sents(s):
    out, start = [], 0
    for m in SPLIT.finditer(s):
        if ABBR.search(s[: m.end(1)]):
            continue
        out.append(s[start : m.end(1)].strip())
        start = m.end()
    out.append(s[start:].strip())
    return [x for x in out if x]


def kind(s):
    t = s.rstrip(" \"»')")
    return "?" if t.endswith("?") else ("!" if t.endswith("!") else ".")


def ratio_ok(a, b, lo=0.5, hi=2.1):
    la, lb = len(a), len(b)
    return abs(la - lb) <= 12 or lo <= lb / max(la, 1) <= hi


def pairs(en, fr):
    """Splits into lines, then sentences, where both sides agree on their number."""
    el, fl = [[squash(x) for x in s.split("\n") if x.strip()] for s in (en, fr)]
    units = (
        list(zip(el, fl, strict=True))
        if len(el) == len(fl)
        and all(ratio_ok(a, b) for a, b in zip(el, fl, strict=True))
        else [(squash(en), squash(fr))]
    )
    for a, b in units:
        sa, sb = sents(a), sents(b)
        if (
            len(sa) > 1
            and len(sa) == len(sb)
            and all(
                ratio_ok(x, y) and (kind(x) == "?") == (kind(y) == "?")
                for x, y in zip(sa, sb, strict=True)
            )
        ):
            yield from zip(sa, sb, strict=True)
        else:
            yield a, b


def letters(s):
    return sum(c.isalpha() for c in s) / max(len(s), 1)


def fault(a, b):
    """Why a pair is not kept, or None."""
    na, nb = len(a.split()), len(b.split())
    if not (MIN <= na <= MAX and MIN <= nb <= MAX):
        return "length"
    if BAD.search(a) or BAD.search(b):
        return "markup/variables"
    if not ratio_ok(a, b):
        return "ratio"
    few = letters(a) < 0.65 or letters(b) < 0.65
    if few or (not a[0].isalnum() and a[0] not in "\"('"):
        return "letters"
    if not re.search(r'[.!?:;,"\')»]$', a) and min(na, nb) < 6:
        return "title-like"
    if a.lower() == b.lower():
        return "untranslated"
    return None


def collect(messages):
    """Rows (English, French, label) of (English, French, label), and counts of why."""
    seen_e, seen_f, rows, why = set(), set(), [], collections.Counter()
    for en, fr, label in messages:
        for a, b in pairs(norm(en), norm(fr)):
            a, b = a.strip("-–— ").strip(), b.strip("-–— ").strip()
            reason = fault(a, b)
            if reason is None and (a.lower() in seen_e or b.lower() in seen_f):
                reason = "duplicate"
            why[reason or "kept"] += 1
            if reason is None:
                seen_e.add(a.lower())
                seen_f.add(b.lower())
                rows.append((a, b, label))
    return rows, why


def messages(specs):
    import polib

    for spec in specs:
        label, path = spec.split("=", 1)
        cat = polib.mofile(path) if path.endswith(".mo") else polib.pofile(path)
        for e in cat:
            if (
                e.obsolete
                or "fuzzy" in getattr(e, "flags", ())
                or not e.msgstr
                or e.msgid_plural
            ):
                continue
            mid = (
                e.msgid.split("^", 1)[1]
                if re.match(r"^[A-Za-z _.:=,\-]{1,60}\^", e.msgid)
                else e.msgid
            )
            yield mid, e.msgstr, label


def main(out, specs):
    rows, why = collect(messages(specs))
    with (
        open(out, "w", encoding="utf8") as f,
        open(os.path.splitext(out)[0] + ".sources.txt", "w") as g,
    ):
        for a, b, label in rows:
            f.write(f"{a}\t{b}\n")
            g.write(label + "\n")
    print(dict(why))
    print(collections.Counter(r[2] for r in rows).most_common())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
