"""What is read from completions, whatever a model writes."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esc_lab.data.strategies import load_inventory
from esc_lab.search.role_answers import (
    UnusableError,
    parse_message,
    parse_preference,
    parse_ratings,
    parse_scores,
    parse_yes_no,
    split_end,
)

CSO, ESCONV = load_inventory("cso"), load_inventory("esconv")
AXES = ("empathy", "information", "humanoid", "strategy")
RATED = {name: float(index) for index, name in enumerate(CSO.names)}
SCORED = dict(zip(AXES, (1.0, 2.0, 0.0, 4.0), strict=True))

# Words as models write them, and everything that a text can be.
PIECES = st.sampled_from(
    [
        *'{}":,*()[]“”`-.7 \n\x00\u2028\u200b\ud800\udfff',
        *("11", "1e999", "NaN", "-1", "true", "null", "[END]", "END", "\\ud800", "é", "日本", "\x1b[2J"),
        *("seeker", "Supporter", "user:", "the assistant", "Affirmation", "empathy", "I hear you."),
        *("<|im_end|>", "<eos>", "</s>"),
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=25).map("".join),
    st.text(st.characters(categories=None), max_size=60),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from([*CSO.names, *AXES]) | st.text(max_size=5), inner, max_size=5),
        ),
        max_leaves=12,
    ).map(json.dumps),
)


def unusable(read, *arguments, **options) -> UnusableError:
    with pytest.raises(UnusableError) as error:
        read(*arguments, **options)
    return error.value


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RATED),
        json.dumps(RATED, indent=2),
        f"```json\n{json.dumps(RATED)}\n```",
        f"Sure! Here it is:\n{json.dumps(RATED)}\nI hope {{this}} helps.",
        f"In the form {{name: rating}}: {{}} {json.dumps(RATED)}",
        json.dumps({"ratings": RATED}),
        json.dumps([{"ratings": RATED}]),
        json.dumps({name.upper(): value for name, value in RATED.items()}),
        json.dumps({name: str(value) for name, value in RATED.items()}),
        "\n".join(f"{name}: {value}" for name, value in RATED.items()),
        "\n".join(f"- {name} = {value:.0f}" for name, value in RATED.items()),
        "\n".join(f"{number}. **{name}**: {value:.0f}/10" for number, (name, value) in enumerate(RATED.items(), 1)),
        "\n".join(f"* **{name}:** {value:.0f}" for name, value in RATED.items()),
        "\n".join(f'"{name}": "{value:.0f}",' for name, value in RATED.items()),
        "\n\n".join(f"  ({number}) {name.lower()} : {value}" for number, (name, value) in enumerate(RATED.items())),
    ],
)
def test_ratings_in_every_form(text: str) -> None:
    found = parse_ratings(text, CSO)
    assert found == RATED
    assert list(found) == list(RATED)  # in the order of the completion


def test_the_first_line_of_a_numbered_list_is_not_taken_for_the_number_of_its_heading() -> None:
    lines = "\n".join(f"{number}. {name}: {value:.0f}" for number, (name, value) in enumerate(RATED.items(), 1))
    assert parse_ratings(f"Ratings:\n{lines}", CSO) == RATED


def test_spellings_and_strategies_that_were_not_rated() -> None:
    found = parse_ratings(
        '{"validation": 3, "Reframing negative thoughts": 10, "AVOID JUDGEMENT & CRITICISM": 0.5}', CSO
    )
    assert found == {"Emotional Validation": 3, "Reframe Negative Thoughts": 10, "Avoid Judgment and Criticism": 0.5}
    assert parse_ratings('{"questions": 2}', ESCONV) == {"Question": 2}


def test_names_outside_the_inventory_leave_the_rest() -> None:
    error = unusable(parse_ratings, '{"Telepathy": 9, "Share Information": 4, "\\ud800": 3}', CSO)
    assert error.partly == {"Share Information": 4}
    assert str(error) == f"'Telepathy', '\\ud800': no such strategy; use {', '.join(CSO.names)}"
    assert unusable(parse_ratings, '{"Telepathy": 9}', CSO).partly is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("11", "'Affirmation' is 11, which is not from 0 to 10"),
        ("-0.5", "is -0.5"),
        ("1e400", "is Infinity"),
        ("NaN", "is NaN"),
        ("-Infinity", "is -Infinity"),
        ("9" * 400, "99, which is not"),
        ('"12"', 'is "12"'),
        ("true", "'Affirmation' has no number"),
        ("null", "has no number"),
        ('"high"', "has no number"),
        ("[7]", "has no number"),
        ("{}", "has no number"),
    ],
)
def test_what_is_no_rating(value: str, why: str) -> None:
    error = unusable(parse_ratings, f'{{"Share Information": 4, "Affirmation": {value}}}', CSO)
    assert error.partly == {"Share Information": 4}
    assert why in str(error)
    assert len(str(error)) < 200
    alone = unusable(parse_ratings, f'{{"Affirmation": {value}}}', CSO)
    assert alone.partly is None
    others = ", ".join(f'"{axis}": 1' for axis in AXES[1:])
    assert "'empathy'" in str(unusable(parse_scores, f'{{"empathy": {value.replace("11", "4.5")}, {others}}}', AXES))


@pytest.mark.parametrize(
    "text", ["", "   ", "I would use Affirmation.", "{", '{"Affirmation": 7', "{}", "[7, 8]", "Affirmation:", "7"]
)
def test_what_cannot_be_read_at_all(text: str) -> None:
    for read, names in ((parse_ratings, CSO), (parse_scores, AXES)):
        error = unusable(read, text, names)
        assert (str(error), error.partly) == ("there is no JSON object with a number for each name in it", None)


def test_endless_brackets_and_blanks() -> None:
    # Does not come back for minutes where the time grows with the square of the length.
    for text in ('{"a":' * 5000, "{" * 5000, "[" * 5000, '{"a":[' * 3000 + "1" + "]}" * 3000):
        unusable(parse_ratings, text, CSO)
    for text in (" " * 20000, "a" + " " * 20000, "\n" * 20000, "user" + " " * 20000 + "x", "- " * 20000, "." * 20000):
        for read in (
            lambda text: parse_ratings(text, CSO),
            lambda text: parse_message(f"{text}\n", "seeker", CSO, cut_off=True),
        ):
            try:
                read(text)
            except UnusableError:
                continue


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(SCORED),
        f"```\n{json.dumps(SCORED)}\n```",
        json.dumps({name.title(): value for name, value in SCORED.items()}),
        json.dumps({"comment": "Warm, but {vague}.", "total": 12, **SCORED}),
        json.dumps({"scores": SCORED, "comment": "Warm."}),
        "\n".join(f"{name}: {value:.0f}/4" for name, value in SCORED.items()),
        "\n".join(f"- **{name.title()}:** {value:.0f} (it is warm)" for name, value in SCORED.items()),
    ],
)
def test_scores_in_every_form(text: str) -> None:
    found = parse_scores(text, AXES)
    assert found == SCORED
    assert tuple(found) == AXES


def test_scores_that_are_missing_are_named() -> None:
    text = json.dumps({**SCORED, "humanoid": 5, "strategy": "good"})
    error = unusable(parse_scores, text, (*AXES, "tact"))
    assert str(error) == "'humanoid' is 5, which is not from 0 to 4; 'strategy' has no number; no score for tact"


SAID = "I hear you. That must be hard."


@pytest.mark.parametrize(
    "text",
    [
        SAID,
        f"  {SAID}\n",
        f'"{SAID}"',
        f"“{SAID}”",
        f"**{SAID}**",
        f'*"{SAID}"*',
        f"Supporter: {SAID}",
        f"**Supporter:** {SAID}",
        f"**Supporter**: {SAID}",
        f'"supporter: {SAID}"',
        f"The supporter - {SAID}",
        f"assistant:\n{SAID}",
        f"Supporter (Affirmation): {SAID}",
        f"Supporter [Affirmation]: {SAID}",
        f"supporter: (Affirmation) {SAID}",
        f"(Affirmation) {SAID}",
        f"[AFFIRMATIONS]: {SAID}",
        f"**(Affirmation)** {SAID}",
        f'"(Emotional Validation) {SAID}"',
        f"Emotional validation: {SAID}",
        f"**Affirmation:** {SAID}",
        f"{SAID}\nSeeker: Yes, it is.\nSupporter: I see.",
        f"{SAID}\n\n**Seeker**: Yes, it is.",
        f"Supporter: {SAID}\n  user (sad): yes",
        f"{SAID}\nsupporter (Affirmation): You are brave.",
        f"“{SAID}”\nSeeker: Yes",
    ],
)
def test_messages_without_what_is_around_them(text: str) -> None:
    assert parse_message(text, "supporter", CSO) == SAID


@pytest.mark.parametrize(
    "text",
    [
        'You told me "it is over."',
        '"It is over" and "I am lost": that is what I heard.',
        "*nods* Go on.",
        "That is **really** hard",
        "Try this:\n* Sleep.\n* Eat.",
        "(I mean it.) You did well.",
        "User-friendly apps may help.",
        "Here is the thing: you did well.",
        "Supporters like me: we listen.",
        "<|im_end|> is what you wrote?",
        "Two lines.\nBoth are mine.",
        "日本語でもいいですよ。",
        "The seeker in you wants to know.",
    ],
)
def test_messages_that_stay_as_they_are(text: str) -> None:
    assert parse_message(text, "supporter", CSO) == text


def test_a_strategy_in_brackets_is_a_label_only_in_its_inventory() -> None:
    assert parse_message("(Question) How so?", "supporter", ESCONV) == "How so?"
    assert parse_message("(Question) How so?", "supporter", CSO) == "(Question) How so?"


def test_the_other_sides_words_are_no_message() -> None:
    assert "not the supporter's message" in str(unusable(parse_message, f"Seeker: {SAID}", "supporter", CSO))
    assert "not the seeker's message" in str(
        unusable(parse_message, f"**Supporter (Affirmation):** {SAID}", "seeker", CSO)
    )
    assert parse_message(f"seeker: {SAID}", "seeker", CSO) == SAID
    assert parse_message(f"user: {SAID}", "seeker", CSO) == SAID
    for text, side in (("User:", "supporter"), ("the user - ", "supporter"), ("**Assistant:**", "seeker")):
        assert unusable(parse_message, f"{text} {SAID}", side, CSO).kind == "other_side"


@pytest.mark.parametrize(
    "text", ["", " \n", "...", '""', "**", "“”", "—", "\u200b", "Supporter:", "(Affirmation)", "—\nSeeker: Hi."]
)
def test_no_message(text: str) -> None:
    assert str(unusable(parse_message, text, "supporter", CSO)) == "there is no message in it"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("I hear you. That must be", "I hear you."),
        ('I hear you! "Go on," is what', "I hear you!"),
        ("He said “no.” And then", "He said “no.”"),
        ("I hear you. That must be hard.", "I hear you. That must be hard."),
        ("That must be", "That must be"),
        ("It costs 3.50 and", "It costs 3.50 and"),
        ('"I hear you. That must', "I hear you."),
        ("I hear you. That must be\nSeeker: Yes. It", "I hear you. That must be"),
    ],
)
def test_a_message_that_was_cut_off_ends_with_its_last_whole_sentence(text: str, whole: str) -> None:
    assert parse_message(text, "supporter", CSO, cut_off=True) == whole


@pytest.mark.parametrize("text", ["[END]", "[end]", "Thanks, bye. [END]", "[ END ]", "END", '"END."', "**[END]**"])
def test_the_seeker_ends_the_talk(text: str) -> None:
    assert split_end(text)[1]


@pytest.mark.parametrize("text", ["", "In the end I left.", "The end", "Endless.", "[ENDED]", "end it"])
def test_the_seeker_goes_on(text: str) -> None:
    assert not split_end(text)[1]


@given(TEXTS)
@example('{"\\ud800": 7}')
@example('{"Affirmation": ' + "9" * 400 + "}")
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    for read, names, most in ((parse_ratings, CSO, 10), (parse_scores, AXES, 4)):
        try:
            values, why = read(text, names), ""
        except UnusableError as error:
            values, why = error.partly, str(error)
        assert len(why.encode()) < 600  # can be encoded, and shown to the model again
        assert values is None or values
        assert all(0 <= value <= most for value in (values or {}).values())
        assert set(values or {}) <= {*CSO.names, *AXES}
    for side in ("supporter", "seeker"):
        for cut_off in (False, True):
            try:
                said = parse_message(text, side, CSO, cut_off=cut_off)
            except UnusableError as error:
                str(error).encode()
                continue
            assert said == said.strip() != ""
            # Nothing is made up: what is said stands in the text.
            assert said in text
    split_end(text)


# --- which of two messages is better


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"better": "A"}', "A"), ('```json\n{"better": "B"}\n```', "B"), ("better: B", "B"), ("**Better**: A", "A"),
        ("B", "B"), (' "A". ', "A"), ("A is warm, B is not.\n{'better': 'A'}", "A"), ('{"better":"B"} better: B', "B"),
    ],
)  # fmt: skip
def test_the_better_message(text: str, named: str) -> None:
    assert parse_preference(text) == named


@pytest.mark.parametrize(
    "text", ["", "Both are good.", '{"better": "C"}', "better: A, better: B", "A better answer", "AB"]
)
def test_no_better_message(text: str) -> None:
    assert "A or B" in str(unusable(parse_preference, text))


@pytest.mark.parametrize("tags", [("<think>\n", "\n</think>\n\n"), ("", "</think>"), ("[THINK]", "[/THINK]")])
def test_reasoning_is_no_part_of_an_answer(tags):
    def answer(reasoning: str, text: str) -> str:
        return f"{tags[0]}{reasoning}{tags[1]}{text}"

    assert parse_message(answer("She may want to [END].", "I see."), "supporter", CSO) == "I see."
    assert not split_end(answer("Should I write [END]?", "It is still hard."))[1]
    assert split_end(answer("Enough of it.", "Thank you. [END]"))[1]
    zeros = json.dumps(dict.fromkeys(AXES, 0))
    assert parse_scores(answer(f"A bad one has {zeros}.", json.dumps(SCORED)), AXES) == SCORED
    assert parse_ratings(answer("Affirmation: 10", json.dumps(RATED)), CSO) == RATED
    assert parse_preference(answer("better: A? No.", "better: B")) == "B"


@pytest.mark.parametrize("text", ["<think>They are", " <think>\nbetter: A, Affirmation: 3, empathy: 2", "a</think> "])
def test_reasoning_without_an_answer_is_unusable(text):
    for read in (parse_preference, lambda text: parse_ratings(text, CSO), lambda text: parse_scores(text, AXES),
                 lambda text: parse_message(text, "seeker", CSO)):  # fmt: skip
        assert "before any answer" in str(unusable(read, text))
    assert not split_end(f"{text} [END]" if text.lstrip().startswith("<") else text)[1]


@pytest.mark.parametrize(
    "part", ['{"a":', '{"a":1,', "{", "<think>", "</think>", "a ", "\nseeker", '."""', "[ ", "1", "-"]
)
def test_a_huge_answer_is_read_about_as_fast_as_it_is_long(part):
    """What took the square of its length would run for hours here."""
    text = part * (600_000 // len(part))
    for read in (
        lambda text: parse_ratings(text, CSO),
        lambda text: parse_message(text, "seeker", CSO, cut_off=True),
        parse_preference,
    ):
        with suppress(UnusableError):
            read(text)
    assert not split_end(text)[1]


@pytest.mark.parametrize(
    ("text", "asks", "reason"),
    [
        ('{"reason": "It asks.", "asks": "yes", "leaves_role": "no"}', True, "It asks."),
        ('```json\n{"Asks": "No.", "leaves_role": false}\n```', False, ""),
        ("- **asks**: Yes, it does\n- leaves_role: no", True, ""),
        ('<think>asks: no</think>asks: yes\nleaves_role = "No"', True, ""),
    ],
)
def test_yes_and_no(text, asks, reason):
    assert parse_yes_no(text, ("asks", "leaves_role"), "reason") == ({"asks": asks, "leaves_role": False}, reason)


@pytest.mark.parametrize(
    "text", ["", "yes", '{"asks": "yes"}', "asks: yes\nleaves_role: perhaps", '{"asks": 1, "leaves_role": "no"}']
)
def test_neither_yes_nor_no(text):
    with pytest.raises(UnusableError, match="no yes or no for "):
        parse_yes_no(text, ("asks", "leaves_role"), "reason")


@given(TEXTS)
def test_yes_and_no_of_any_text(text):
    with suppress(UnusableError):
        answers, _ = parse_yes_no(text, ("empathy",), "reason")
        assert answers["empathy"] in (True, False)
