"""Every rule, on texts of our own; against the published functions all of them were compared once.

That comparison: no difference on the lines of WikiText-2 (raw test and tokenised validation),
LAMBADA and tiny Shakespeare, and on 100,000 random rows of the strings that trigger rules.
"""

import pytest

from sedd_jax.evaluation.datasets import DETOKENIZERS

CASES = {
    "none": [(" left @-@ as it is \n", " left @-@ as it is \n")],
    "wikitext": [
        ("the boys ' mill", "the boys' mill"),
        ("odd /' 7/ mark", "odd /'[0-9]/ mark"),  # the pattern is put there, letter by letter
        ("well @-@ made", "well-made"),
        ("40 @,@ 000", "40,000"),
        ("3 @.@ 5", "3.5"),
        ("so : that", "so: that"),
        ("so ; that", "so; that"),
        ("so . That", "so. That"),
        ("so ! That", "so! That"),
        ("so ? That", "so? That"),
        ("so , that", "so, that"),
        ("a ( b c ) d", "a (b c) d"),
        ("a [ b c ] d", "a [b c] d"),
        ("a { b c } d", "a {b c} d"),
        ('a " b c " d', 'a "b c" d'),
        ("a ' b c ' d", "a 'b c' d"),
        ("a ( b ( c ) d )", "a (b ( c) d )"),  # the first closing mark ends it
        ("= = = = Deep = = = =", "==== Deep ===="),
        ("= = = = =", "====="),  # four are joined first
        ("= = = Mid = = =", "=== Mid ==="),
        ("= = High = =", "== High =="),
        (" = Top = \n", " = Top =\n"),
        ("20 ° C", "20°C"),
        ("end \nnext", "end\nnext"),
        ("end\n next", "end\nnext"),
        ("route N is N here", "route 1 is 1 here"),
        ("N N N N", "N 1 N N"),  # once only, and not at the ends
        ("the mill 's wheel", "the mill's wheel"),
        ("ends with .", "ends with ."),
        ("", ""),
    ],
    "ptb": [
        ("the mill 's wheel", "the mill's wheel"),
        ("the mills ' wheels", "the mills' wheels"),
        ("it is n't so", "it isn't so"),
        ("one \n two", "one\ntwo"),
        (r"3\/4 of it", "3/4 of it"),
        ("x N N N N N x", "x 1 1 1 1 1 x"),
        ("N and N", "N and N"),  # not at the ends
        ("for $ N each", "for $1 each"),
        ("for # N each", "for #1 each"),
        ("the <unk> mill", "the ? mill"),
    ],
    "lm1b": [
        ("see http : / / a", "see http://a"),
        ("see https : / / a", "see https://a"),
        ("the mill 's wheel", "the mill's wheel"),
        ("they ' re", "they ' re"),
        ("it ended . Then", "it ended. Then"),
        ("it ended .", "it ended."),
        ("in ( 1 ) . Then", "in (1) . Then"),  # only after letters and digits
        ("did it ? Then", "did it? Then"),
        ("did it ?", "did it?"),
        ("it did ! Then", "it did! Then"),
        ("it did !", "it did!"),
        ("one , two", "one, two"),
        ("one : two", "one: two"),
        ("one ; two", "one; two"),
        ("one / two", "one/two"),
        ('a " b c " d', 'a "b c" d'),
        ("a , ' b c ' d", "a, 'b c' d"),
        ("a ( b c ) d", "a (b c) d"),
        ("a [ b c ] d", "a [b c] d"),
        ("a ( b ( c ) d )", "a ( b (c) d )"),  # the inner one
        ("for $ 5", "for $5"),
        ("for £ 5", "for £5"),
    ],
    "lambada": [
        ("“ so ” it is", '\n" so " it is'),
        ("  edges \n", "\nedges"),
        ("", "\n"),
    ],
    "wikitext, then lm1b": [
        ("well @-@ made ( it is ) .", "well-made (it is) ."),
        ("3 @.@ 5 / 7 .", "3.5/7."),
        ("over $ 3 ; more , then", "over $3; more, then"),
    ],
}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_a_rule(name, text, expected):
    assert DETOKENIZERS[name](text) == expected


def test_all_are_tried():
    assert CASES.keys() == DETOKENIZERS.keys()
