"""What holds of every text: it is a sentence of the language or a RuleError, and a sentence prints itself."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accmt.rules import RuleError, nodes, parse_cadence, parse_condition, parse_saving

PARSERS = (parse_saving, parse_condition, parse_cadence)
LONGEST = 1_000
SPAN = {"span": nodes.Span(0, 0)}

often = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

odd_names = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\"'"), max_size=5)
known_names = st.sampled_from(
    [*sorted(nodes.RESERVED), *nodes.COUNTERS, "accuracy", "best_x", "rouge-L", "top.5", "é", "損失", "it's", '"', "7"]
)
positive = st.floats(0, allow_nan=False, allow_infinity=False)
units = st.sampled_from(["step", "epoch", "evaluation", "sample", "hour", "%", "fortnight"])
signs = st.sampled_from([1, -1])


@st.composite
def name(draw):
    return nodes.Name(draw(known_names | odd_names), **SPAN)


@st.composite
def quantity(draw):
    return nodes.Quantity(draw(positive), draw(units), **SPAN)


@st.composite
def measure(draw):
    datasets = draw(st.lists(name() | st.just(nodes.Everywhere(**SPAN)), max_size=3))
    return nodes.Measure(draw(name()), tuple(datasets), **SPAN)


@st.composite
def expression(draw, depth=3):
    """Any expression, in the form in which the parser builds it: nothing that it would join is nested."""
    kind = draw(st.integers(0, 10 if depth else 2))
    if kind <= 2:
        number, counter = (
            nodes.Number(draw(positive), **SPAN),
            nodes.Counter(draw(st.sampled_from(nodes.COUNTERS)), **SPAN),
        )
        return (number, counter, draw(measure()))[kind]
    inner = expression(depth - 1)
    first, second = draw(inner), draw(inner)
    if kind == 3:
        terms = (*(first.terms if isinstance(first, nodes.Sum) else (first,)), second)
        return nodes.Sum((1, *(draw(signs) for _ in terms[1:])), terms, **SPAN)
    if kind == 4:
        return nodes.Product((*(first.factors if isinstance(first, nodes.Product) else (first,)), second), **SPAN)
    if kind in (5, 6):
        joined = nodes.And if kind == 5 else nodes.Or
        operands = [op for part in (first, second) for op in (part.operands if isinstance(part, joined) else (part,))]
        return joined(tuple(operands), **SPAN)
    if kind == 7:
        operator = draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]))
        negative = nodes.Number(-draw(positive), **SPAN)
        return nodes.Comparison(first, operator, draw(st.sampled_from([second, draw(quantity()), negative])), **SPAN)
    if kind == 8:
        arguments = (first, *draw(st.lists(st.sampled_from([second, draw(quantity())]), max_size=2)))
        return nodes.Call(
            draw(st.sampled_from(["worst", "avg", "unheard_of"])), arguments, function_span=SPAN["span"], **SPAN
        )
    return nodes.Not(first, **SPAN) if kind == 9 else nodes.IsNan(first, **SPAN)


@st.composite
def amount(draw):
    relative, standard_errors = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    return nodes.Amount(draw(positive), relative, standard_errors, **SPAN)


@st.composite
def saving(draw):
    groups = draw(st.lists(st.lists(expression(2), min_size=1, max_size=2).map(tuple), min_size=1, max_size=2))
    return nodes.Saving(
        nodes.Ranking(tuple(groups), **SPAN),
        draw(st.none() | expression()),
        draw(st.none() | amount()),
        draw(st.none() | st.builds(nodes.Number, positive, span=st.just(SPAN["span"]))),
        draw(st.none() | quantity()),
        **SPAN,
    )


@st.composite
def cadence(draw):
    every = draw(st.lists(quantity(), min_size=1, max_size=3))
    return nodes.Cadence(tuple(every), draw(st.none() | quantity()), **SPAN)


pieces = st.sampled_from(
    [
        "best_",
        "accuracy",
        "@",
        "dev",
        "*",
        "7",
        "2024-test",
        "/",
        "then",
        "if",
        "by",
        "keep",
        "after",
        "and",
        "or",
        "not",
        "is",
        "nan",
        "every",
        "0.5",
        "1e3",
        ".5",
        "3",
        "%",
        "epochs",
        "ep",
        "(",
        ")",
        ",",
        "+",
        "-",
        "<",
        "<=",
        "==",
        "!=",
        "=",
        "!",
        "'",
        '"',
        "#",
        "\\",
        "\n",
        "²",
        "é",
        " ",
        " + ",
        " - ",
        "avg(",
        "worst(",
        '"my set"',
        "step",
        "elapsed",
        "se",
    ]
)
sentences = saving().map(str) | expression().map(str) | cadence().map(str)
parsers = st.sampled_from(PARSERS)


@st.composite
def slipped(draw):
    """A sentence in which something was lost or added."""
    text = draw(sentences)
    place = draw(st.integers(0, len(text)))
    return text[:place] + draw(pieces | st.just("")) + text[place + draw(st.integers(0, 3)) :]


texts = st.lists(pieces, max_size=14).map("".join) | st.lists(pieces, max_size=14).map(" ".join) | st.text(max_size=30)


@often
@given(saving())
def test_every_saving_rule_prints_itself(node):
    agrees(parse_saving, node)


@often
@given(expression())
def test_every_condition_prints_itself(node):
    agrees(parse_condition, node)


@often
@given(cadence())
def test_every_cadence_prints_itself(node):
    agrees(parse_cadence, node)


def agrees(parse, node):
    text = str(node)
    if len(text) <= LONGEST:
        assert parse(text) == node
        assert str(parse(text)) == text


@settings(often, max_examples=5 * often.max_examples)
@given(parsers, texts | slipped())
def test_every_text_is_a_sentence_or_a_rule_error(parse, text):
    node = parsed(parse, text)
    if node is not None:
        agrees(parse, node)


def parsed(parse, text):
    """The node, None where there is none, which the error says in words."""
    try:
        return parse(text)
    except RuleError as error:
        if not error.problems or (not str(error).isprintable() and "\n" not in str(error)):
            raise AssertionError(f"{text!r} is refused without words") from error
        return None


@often
@given(parsers, sentences, st.sampled_from([" ", "\t", "\n", "  ", "\u3000"]))
def test_white_space_around_a_text_is_ignored(parse, text, blank):
    if len(text) <= LONGEST - 4:
        assert parsed(parse, blank + text + blank) == parsed(parse, text)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("thing", [None, 3, 0.5, b"accuracy", ["accuracy"], True])
def test_what_is_no_text_is_a_type_error(parse, thing):
    with pytest.raises(TypeError, match="a rule is text, not"):
        parse(thing)
