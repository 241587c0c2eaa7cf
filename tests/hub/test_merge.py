"""Two edits of a text go together as git would have them, and in a bounded time."""

from __future__ import annotations

import difflib
import random
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from merge3 import Merge3

from hub.trunk import align, merge
from hub.trunk.merge import CannotMerge, marked

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Lines = list[bytes]
BASE = b"".join(b"line %d\n" % number for number in range(1, 10))


def merged(base: bytes, mine: bytes, theirs: bytes) -> bytes | str:
    try:
        return merge.merge(base, mine, theirs)
    except CannotMerge as error:
        return error.reason


def by_git(place: Path, base: bytes, mine: bytes, theirs: bytes, *options: str) -> bytes | None:
    """Return what ``git merge-file`` makes of it, None for a conflict."""
    for name, text in (("base", base), ("mine", mine), ("theirs", theirs)):
        (place / name).write_bytes(text)
    done = subprocess.run(
        ["git", "merge-file", "-p", *options, "mine", "base", "theirs"],
        cwd=place,
        capture_output=True,
        check=False,
    )
    assert done.returncode >= 0, done.stderr
    return None if done.returncode else done.stdout


# --- what merges, what does not -----------------------------------------------------------


def test_edits_of_different_lines_go_together() -> None:
    mine = BASE.replace(b"line 2", b"mine")
    theirs = BASE.replace(b"line 8", b"theirs")
    assert merged(BASE, mine, theirs) == mine.replace(b"line 8", b"theirs")


def test_edits_of_neighbouring_lines_do_not() -> None:
    mine, theirs = BASE.replace(b"line 4", b"mine"), BASE.replace(b"line 5", b"theirs")
    assert merged(BASE, mine, theirs) == merge.SAME_LINES
    assert merged(BASE, mine, BASE.replace(b"line 6", b"theirs")) == mine.replace(
        b"line 6", b"theirs"
    )


def test_the_same_edit_on_both_sides_is_one() -> None:
    both = BASE.replace(b"line 4", b"both")
    assert merged(BASE, both, both) == both
    theirs = both.replace(b"line 8", b"theirs")
    assert merged(BASE, both, theirs) == theirs
    assert merged(BASE, theirs, both) == theirs


def test_what_has_a_nul_is_binary_unless_one_side_changed_alone() -> None:
    assert merged(b"\0a", b"\0b", b"\0c") == merge.BINARY
    assert merged(b"a\n", b"b\n", b"\0c") == merge.BINARY
    assert merged(b"\0a", b"\0b", b"\0a") == b"\0b"
    assert merged(b"\0a", b"\0a", b"\0c") == b"\0c"
    assert merged(b"\0a", b"\0b", b"\0b") == b"\0b"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_stay_as_they_are(end: bytes) -> None:
    base = BASE.replace(b"\n", end)
    mine, theirs = base.replace(b"line 2", b"mine"), base.replace(b"line 8", b"theirs")
    if end == b"\r":
        assert merged(base, mine, theirs) == merge.SAME_LINES  # one line, as for git
    else:
        assert merged(base, mine, theirs) == mine.replace(b"line 8", b"theirs")


def test_a_last_line_without_an_end_keeps_none() -> None:
    base = BASE[:-1]
    mine, theirs = base.replace(b"line 2", b"mine"), base + b", more"
    assert merged(base, mine, theirs) == mine + b", more"
    assert merged(base, base + b"\n", theirs) == merge.SAME_LINES


def test_what_is_too_large_is_refused_before_anything_is_compared() -> None:
    long = b"x\n" * (merge.LARGEST_LINES + 1)
    assert merged(long, b"a" + long, long + b"b") == merge.TOO_LARGE
    wide = b"x" * (merge.LARGEST_BYTES + 1)
    assert merged(b"", b"a", wide) == merge.TOO_LARGE


# --- markers ------------------------------------------------------------------------------


def test_markers_stand_around_both_versions_of_what_conflicts_alone(tmp_path: Path) -> None:
    mine = BASE.replace(b"line 4", b"mine").replace(b"line 1", b"first")
    theirs = BASE.replace(b"line 4", b"theirs").replace(b"line 9", b"last")
    shown = marked(BASE, mine, theirs, mine_is="auth", theirs_is="trunk: docs")
    assert shown == BASE.replace(b"line 1", b"first").replace(b"line 9", b"last").replace(
        b"line 4\n",
        b"<<<<<<< auth\nmine\n=======\ntheirs\n>>>>>>> trunk: docs\n",
    )
    options = ("-L", "auth", "-L", "base", "-L", "trunk: docs")
    assert by_git(tmp_path, BASE, mine, theirs, *options) is None
    done = subprocess.run(
        ["git", "merge-file", "-p", *options, "mine", "base", "theirs"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.stdout == shown


def test_what_both_versions_begin_and_end_with_is_told_once() -> None:
    mine = BASE.replace(b"line 4\n", b"same\nmine\nend\n")
    theirs = BASE.replace(b"line 4\n", b"same\ntheirs\nend\n")
    assert b"same\n<<<<<<< a\nmine\n=======\ntheirs\n>>>>>>> b\nend\n" in marked(
        BASE, mine, theirs, mine_is="a", theirs_is="b"
    )


def test_a_marker_begins_a_line_and_ends_as_the_text_s_lines_do() -> None:
    assert marked(b"a", b"b", b"c", mine_is="m", theirs_is="t") == (
        b"<<<<<<< m\nb\n=======\nc\n>>>>>>> t\n"
    )
    assert marked(b"a\r\n", b"b\r\n", b"c\r\n", mine_is="m", theirs_is="t") == (
        b"<<<<<<< m\r\nb\r\n=======\r\nc\r\n>>>>>>> t\r\n"
    )


def test_without_a_conflict_there_are_no_markers() -> None:
    mine, theirs = BASE + b"more\n", b"less\n" + BASE
    assert marked(BASE, mine, theirs, mine_is="m", theirs_is="t") == merged(BASE, mine, theirs)


# --- beside git ---------------------------------------------------------------------------


class Author:
    """Writes texts and edits them; lines come from *kind*."""

    def __init__(self, kind: str) -> None:
        self.dice = random.Random(f"merge {kind}")
        self._line: Callable[[], bytes] = getattr(self, f"_{kind}")
        self._number = 0

    def text(self) -> Lines:
        return [self._line() for _ in range(self.dice.randint(0, 30))]

    def edited(self, lines: Lines) -> Lines:
        lines = list(lines)
        for _ in range(self.dice.randint(1, 3)):
            at = self.dice.randint(0, len(lines))
            match self.dice.choice(["insert", "delete", "replace"]):
                case "insert":
                    lines[at:at] = [self._line() for _ in range(self.dice.randint(1, 3))]
                case "delete":
                    del lines[at : at + self.dice.randint(1, 3)]
                case _:
                    lines[at : at + 1] = [self._line()]
        return lines

    def _unique(self) -> bytes:
        self._number += 1
        return b"unique %d\n" % self._number

    def _code(self) -> bytes:
        often = [b"}\n", b"\n", b"    return x\n"]
        return self.dice.choice(often) if self.dice.random() < 0.4 else self._unique()

    def _letters(self) -> bytes:
        return self.dice.choice([b"a\n", b"b\n", b"c\n"])


@pytest.mark.parametrize(("kind", "least"), [("unique", 1.0), ("code", 1.0), ("letters", 0.98)])
def test_merges_are_git_s_to_the_byte(tmp_path: Path, kind: str, least: float) -> None:
    # Where every line has twins, of several shortest scripts git may choose another than we do.
    author = Author(kind)
    same = conflicts = 0
    rounds = 300
    for _ in range(rounds):
        base = author.text()
        mine, theirs = b"".join(author.edited(base)), b"".join(author.edited(base))
        ours = merged(b"".join(base), mine, theirs)
        gits = by_git(tmp_path, b"".join(base), mine, theirs)
        conflicts += gits is None
        same += ours == (merge.SAME_LINES if gits is None else gits)
    assert rounds * 0.1 < conflicts < rounds * 0.9, "both outcomes must be among them"
    assert same >= rounds * least


class PlainMatcher(difflib.SequenceMatcher[bytes]):
    """The matcher that merge3 takes by itself, without its guess at what is junk."""

    def __init__(self, _junk: Any, a: Any, b: Any, _autojunk: Any = None) -> None:
        super().__init__(None, a, b, autojunk=False)


@given(st.data())
def test_of_unique_lines_every_alignment_is_the_same(data: st.DataObject) -> None:
    # So it does not matter that common heads and tails are taken off before lines are compared.
    numbers = st.lists(st.integers(0, 40), unique=True, max_size=30)
    base = sorted(data.draw(numbers))
    sides = []
    for letter in (b"a", b"b"):
        changed = data.draw(st.lists(st.sampled_from(base), max_size=4)) if base else []
        sides.append(
            [
                b"%d%s\n" % (number, letter if number in changed else b"")
                for number in sorted({*base} - {*data.draw(numbers)[:3]})
            ]
        )
    lines = [b"%d\n" % number for number in base]
    mine, theirs = sides
    plain = Merge3(lines, mine, theirs, sequence_matcher=PlainMatcher)  # type: ignore[arg-type] # its stub wants None
    ours = Merge3(lines, mine, theirs, sequence_matcher=align.Alignment)
    assert list(ours.merge_groups()) == list(plain.merge_groups())


LETTERS = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=40)


@given(LETTERS, LETTERS, st.integers(0, 200) | st.just(align.STEPS))
def test_an_alignment_is_right_however_few_steps_it_may_take(
    a: Lines, b: Lines, steps: int
) -> None:
    blocks = align.matching_blocks(a, b, steps)
    at_a = at_b = 0
    for i, j, size in blocks:
        assert i >= at_a
        assert j >= at_b
        assert a[i : i + size] == b[j : j + size]
        at_a, at_b = i + size, j + size
    assert blocks[-1] == (len(a), len(b), 0)
    assert all(size for *_at, size in blocks[:-1])


@given(LETTERS, LETTERS)
def test_with_all_its_steps_an_alignment_is_a_longest_one(a: Lines, b: Lines) -> None:
    longest = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            longest[i + 1][j + 1] = (
                longest[i][j] + 1 if one == other else max(longest[i][j + 1], longest[i + 1][j])
            )
    assert sum(size for *_at, size in align.matching_blocks(a, b)) == longest[-1][-1]


def test_runs_of_changed_lines_that_meet_become_one() -> None:
    # As git's own code does it; compared once with a literal copy, on 100,000 random cases.
    runs = {0: 1, 1: 1}
    align._settle([b"a", b"a", b"b"], runs, {0: 2}, align.STEPS)
    assert runs == {1: 2}


# --- in time ------------------------------------------------------------------------------


def scattered(lines: Lines, many: int, tag: bytes) -> Lines:
    dice = random.Random(tag)
    lines = list(lines)
    for at in dice.sample(range(len(lines)), many):
        lines[at] = b"%s %d\n" % (tag, at)
    return lines


def hard_cases() -> dict[str, tuple[Lines, Lines, Lines]]:
    many = 20_000
    dice = random.Random(7)
    unique = [b"this is line number %d\n" % number for number in range(many)]
    letters = [dice.choice([b"a\n", b"b\n", b"c\n"]) for _ in range(many)]
    other_letters = [dice.choice([b"a\n", b"b\n", b"c\n"]) for _ in range(many)]
    one, another = list(unique), list(unique)
    dice.shuffle(one)
    dice.shuffle(another)
    twins = [b"x\n"] * many
    return {
        "half of it": (unique, scattered(unique, many // 2, b"a"), scattered(unique, 3, b"b")),
        "everywhere": (unique, scattered(unique, 1000, b"a"), scattered(unique, 1000, b"b")),
        "shuffled": (unique, one, another),
        "twins": (twins, [b"y\n", *twins, b"z\n"], [*twins[:9999], b"w\n", *twins]),
        "letters": (letters, other_letters, scattered(letters, 9, b"b")),
    }


def test_no_text_of_twenty_thousand_lines_takes_long() -> None:
    """Measured on an idle machine: 110 ms for the worst of these; difflib takes minutes."""
    for name, texts in hard_cases().items():
        began = time.process_time()
        merged(*(b"".join(lines) for lines in texts))
        assert time.process_time() - began < 0.6, name


def test_edits_at_both_ends_of_a_long_text_go_together() -> None:
    lines = [b"this is line number %d\n" % number for number in range(20_000)]
    mine, theirs = [b"mine\n", *lines, b"end\n"], [*lines[:9000], b"theirs\n", *lines[9000:]]
    expected = [b"mine\n", *theirs, b"end\n"]
    assert merged(b"".join(lines), b"".join(mine), b"".join(theirs)) == b"".join(expected)


def test_many_edits_beyond_what_a_search_may_take_still_go_together() -> None:
    lines = [b"this is line number %d\n" % number for number in range(12_000)]
    mine = scattered(lines[:11_000], 500, b"mine") + lines[11_000:]
    theirs = [*lines[:11_500], b"theirs\n", *lines[11_501:]]
    expected = [*mine[:11_500], b"theirs\n", *mine[11_501:]]
    assert merged(b"".join(lines), b"".join(mine), b"".join(theirs)) == b"".join(expected)
