"""Pages: what enters a template is escaped, and a page holds all it needs."""

import json

import jinja2
import pytest

from sedd_jax.display import page
from sedd_jax.display.table import Table

HEAD = '{% extends "sedd_jax.display:document.html" %}{% set title = "A & b" %}'
MACROS = '{% import "sedd_jax.display:macros.html" as macros %}'


@pytest.fixture
def rendered():
    """Renders the body of a page."""

    def render(body, **values):
        source = HEAD + MACROS + "{% block body %}" + body + "{% endblock %}"
        return page._environment("sedd_jax.display").from_string(source).render(values)

    return render


def test_values_are_escaped_and_controls_are_drawn(rendered):
    text = rendered("<pre>{{ nasty }}</pre>", nasty='<b>"&\x00\n')
    assert "<pre>&lt;b&gt;&#34;&amp;␀\n</pre>" in text
    assert "<title>A &amp; b</title>" in text and "<script" not in text


def test_a_value_that_is_missing_is_an_error(rendered):
    with pytest.raises(jinja2.UndefinedError, match="absent"):
        rendered("{{ absent }}")


def test_data_of_a_page_is_json_without_markup(rendered):
    value = ["</script>", "\u2028\u2029", "&amp;", "\ud800", "é"]
    text = rendered('{{ macros.data("x", value) }}', value=value)
    inside = text.partition('<script type="application/json" id="x">')[2].partition("</script>")[0]
    assert not set("<>&\u2028\u2029\ud800") & set(inside) and json.loads(inside) == value


def test_columns_of_numbers_end_at_the_right(rendered):
    table = Table("t", ("a", "b"), [("<= 2.0 +- 1.0", "x"), (None, "y" * 41)])
    text = rendered("{{ macros.figures(table) }}", table=table)
    assert '<tr><td class="number">≤\u00a02.0\u00a0±\u00a01.0</td><td>x</td></tr>' in text
    assert f'<tr><td class="number">–</td><td class="long">{"y" * 41}</td></tr>' in text
