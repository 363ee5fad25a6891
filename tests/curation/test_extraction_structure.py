"""What must survive extraction: formulas in every form the web has, code to the character, tables; and markers on request."""

import pytest

from herd.curation.extraction import MATHS_AND_CODE, ExtractionConfig, extract_html
from herd.curation.extraction.blocks import split_blocks
from herd.curation.extraction.formulas import mathml

CONFIG = ExtractionConfig()
PROSE = (
    "<p>The lesson shows where the relation comes from, which quantities it joins, and when it may be used. Follow "
    "each step with "
    "pencil and paper, since the argument is short and every line of it is needed later.</p>"
)


def page(body: str) -> str:
    return f"<html><body><nav><a href='/'>Home</a></nav><main><h1>A lesson</h1>{PROSE}{body}{PROSE}</main></body></html>"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ('<math><mi>a</mi><annotation encoding="application/x-tex">a^2 &lt; b</annotation></math>', "$a^2 < b$"),
        ('<math alttext="{\\displaystyle E=mc^{2}}"><mi>E</mi></math>', "$E=mc^{2}$"),
        ('<math display="block" alttext="x_1"><mi>x</mi></math>', "$$x_1$$"),
        ("<math><mfrac><mn>1</mn><mi>n</mi></mfrac></math>", "$\\frac{1}{n}$"),
        ("<math><msup><mi>x</mi><mn>2</mn></msup><mo>+</mo><msqrt><mi>y</mi></msqrt></math>", "$x^{2} + \\sqrt{y}$"),
        ('<span class="MathJax">f</span><script type="math/tex">f(x) &amp; \\le 1</script>', "$f(x) &amp; \\le 1$"),
        ('<script type="math/tex; mode=display">\\sum_k k</script>', "$$\\sum_k k$$"),
        (
            '<span class="katex"><span class="katex-mathml"><math><annotation encoding="application/x-tex">\\vec '
            "v</annotation></math>"
            '</span><span class="katex-html" aria-hidden="true"><span>v</span></span></span>',
            "$\\vec v$",
        ),
        ('<img class="tex" alt="\\pi r^2" src="a.png">', "\\pi r^2"),
        ("\\(u \\cdot v\\)", "\\(u \\cdot v\\)"),
    ],
)
def test_formulas_become_tex(markup, text):
    result = extract_html(page(f"<p>We see that {markup} holds for all of them.</p>"), CONFIG)
    assert f"We see that {text} holds for all of them." in result


def test_a_picture_of_no_formula_says_nothing():
    assert "sunset" not in extract_html(page('<p>Look: <img alt="a sunset at sea" src="a.png"> here.</p>'), CONFIG)


def test_mathml_without_a_source_and_with_broken_nesting_is_read():
    assert mathml("<math><mrow><mi>a</mi></math>") == "a"
    assert mathml("<math><mfrac><mn>1</mn></math>") == "1"


@pytest.mark.parametrize(
    "markup",
    [
        "<pre>def f(x):\n    if x:\n\treturn  1\n\n    return 2</pre>",
        "<pre><code class='language-python'><span>def</span> f(x):\n    if x:\n\treturn  1\n\n    return 2\n</code></pre>",
        "<pre><span class='lineno'>1 </span>def f(x):\n<span class='lineno'>2 </span>    if x:\n\treturn  1\n\n    "
        "return 2</pre>",
        "<table><tr><td class='gutter'><pre>1\n2\n3\n4\n5</pre></td><td class='code'><pre>def f(x):\n    if "
        "x:\n\treturn  1\n\n    return 2"
        "</pre></td></tr></table>",
        "<code>def f(x):\n    if x:\n\treturn  1\n\n    return 2</code>",
        "<pre><span class='line'>def f(x):</span><span class='line'>    if x:</span><span class='line'>\treturn  1\n\n</span>"
        "<span class='line'>    return 2</span></pre>",
        "<pre><div>def f(x):</div><div>    if x:</div><div>\treturn  1</div><div>\n</div><div>    return 2</div></pre>",
    ],
)
def test_code_lines_stay_as_they_are(markup):
    for config in (CONFIG, MATHS_AND_CODE):
        assert "\n\ndef f(x):\n    if x:\n\treturn  1\n\n    return 2\n\n" in extract_html(page(markup), config)


@pytest.mark.parametrize(
    "markup",
    [
        '<table><tr><td class="blob-num" data-line-number="1"></td><td class="blob-code">for x in y:</td></tr><tr>'
        '<td class="blob-num" data-line-number="2"></td><td class="blob-code">    go(x)</td></tr></table>',
        '<pre><code><table><tr><td class="hljs-ln-numbers">1</td><td class="hljs-ln-code" '
        'data-line-number="1">for x in y:</td></tr>'
        '<tr><td class="hljs-ln-numbers">2</td><td class="hljs-ln-code" '
        'data-line-number="2">    go(x)</td></tr></table></code></pre>',
        '<div><pre class="CodeMirror-line">for x in y:</pre><pre class="CodeMirror-line">    go(x)</pre></div>',
    ],
)
@pytest.mark.parametrize("markdown", [False, True])
def test_a_listing_with_an_element_a_line_is_one_listing(markup, markdown):
    text = extract_html(page(markup), ExtractionConfig(markdown=markdown))
    assert ("```\nfor x in y:\n    go(x)\n```" if markdown else "\n\nfor x in y:\n    go(x)\n\n") in text


def test_with_the_maths_and_code_preset_structure_stays_where_prose_would_not():
    code = "<div class='sidebar related'><pre>pip install it</pre></div>"
    assert "pip install it" in extract_html(page(code), MATHS_AND_CODE)


def test_a_data_table_is_one_line_a_row_and_a_layout_table_is_not():
    rows = "<tr><th>tide<th>height</tr><tr><td><p>spring</p><td>4 m</tr><tr><td>neap<td>2 m</tr>"
    assert "\n\ntide\theight\nspring\t4 m\nneap\t2 m\n\n" in extract_html(page(f"<table>{rows}</table>"), CONFIG)
    blocks, _ = split_blocks(f"<table><tr><td>{PROSE}{PROSE}</td><td>{PROSE}</td></tr></table>")
    assert len(blocks) == 3


def test_markdown_is_a_switch():
    body = "<h2>Steps</h2><ol><li>First <b>one</b></li><li>Then <code>two</code></li></ol><pre>x = 1</pre>"
    plain, marked = (extract_html(page(body), ExtractionConfig(bias=5, markdown=switch)) for switch in (False, True))
    assert "\n\nSteps\n\nFirst one\nThen two\n\nx = 1\n\n" in plain
    assert "\n\n## Steps\n\n1. First **one**\n2. Then `two`\n\n```\nx = 1\n```\n\n" in marked
    assert marked.startswith("# A lesson\n")


def test_an_attribute_may_hold_any_character():
    assert extract_html("""<p title="a>b" class='x"y<z'>All of the text.</p>""", CONFIG) == "All of the text.\n"
