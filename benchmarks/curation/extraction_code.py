"""Hand-written pages, one for each way in which the web shows listings, with the lines that should survive, indentation included.

The markup is that of the tool named; the listing is the same on every page.
"""
# ruff: noqa: E501 - markup as its tools write it

from collections.abc import Callable
from html import escape

from extraction_formulas import page

LISTING = [
    "def mean(values):",
    '    """Average of a list; 0 of none."""',
    "    total = 0.0",
    "    for value in values:",
    "        if value < 0:",
    "            continue",
    "        total += value",
    "",
    "    return total / len(values) if values else 0.0",
]


def _join(write: Callable[[int, str], str], between: str = "") -> str:
    """Each line, numbered from 1 and escaped, as ``write`` puts it."""
    return between.join(write(number, escape(line, quote=False)) for number, line in enumerate(LISTING, 1))


def _indented(line: str) -> str:
    """A line whose leading blanks are no-break spaces."""
    code = line.lstrip(" ")
    return "&nbsp;" * (len(line) - len(code)) + code


_PLAIN = _join(lambda _, line: line, "\n")
_SPANS = _join(
    lambda _, line: line.replace("total", '<span class="n">total</span>').replace("if", '<span class="k">if</span>'), "\n"
)
_NUMBERS = _join(lambda number, _: str(number), "\n")

CODE_PAGES: dict[str, str] = {
    "pre": f"<pre>{_PLAIN}\n</pre>",
    "pre and code, coloured (Pygments, highlight.js)": f'<div class="highlight"><pre><span></span><code class="language-python">{_SPANS}\n</code></pre></div>',
    "table of two cells (Sphinx, Pygments linenos=table)": (
        '<div class="highlight"><table class="highlighttable"><tr><td class="linenos"><div class="linenodiv"><pre>'
        f'{_join(lambda n, _: f"<span class=normal>{n}</span>", chr(10))}</pre></div></td><td class="code"><div><pre><span></span>{_SPANS}\n'
        "</pre></div></td></tr></table></div>"
    ),
    "table of two cells (Rouge, Jekyll)": (
        '<div class="language-python highlighter-rouge"><div class="highlight"><pre class="highlight"><code><table class="rouge-table">'
        f'<tbody><tr><td class="rouge-gutter gl"><pre class="lineno">{_NUMBERS}\n</pre></td><td class="rouge-code"><pre>{_SPANS}\n</pre>'
        "</td></tr></tbody></table></code></pre></div></div>"
    ),
    "a row a line (GitHub)": (
        '<table class="highlight tab-size js-file-line-container"><tbody>'
        + _join(
            lambda n, line: f'<tr><td id="L{n}" class="blob-num js-line-number" data-line-number="{n}"></td>'
            f'<td id="LC{n}" class="blob-code blob-code-inner js-file-line">{line or chr(10)}</td></tr>'
        )
        + "</tbody></table>"
    ),
    "a row a line (highlightjs-line-numbers)": (
        '<pre><code class="hljs python"><table class="hljs-ln"><tbody>'
        + _join(
            lambda n, line: f'<tr><td class="hljs-ln-line hljs-ln-numbers" data-line-number="{n}"><div class="hljs-ln-n" '
            f'data-line-number="{n}"></div></td><td class="hljs-ln-line hljs-ln-code" data-line-number="{n}">{line}</td></tr>'
        )
        + "</tbody></table></code></pre>"
    ),
    "a division a line (SyntaxHighlighter)": (
        '<div class="syntaxhighlighter python"><table border="0" cellpadding="0" cellspacing="0"><tbody><tr><td class="gutter">'
        + _join(lambda n, _: f'<div class="line number{n} index{n - 1} alt{n % 2}">{n}</div>')
        + '</td><td class="code"><div class="container">'
        + _join(
            lambda n, line: f'<div class="line number{n} index{n - 1} alt{n % 2}">'
            + (f'<code class="python spaces">{"&nbsp;" * (len(line) - len(line.lstrip()))}</code>' if line[:1] == " " else "")
            + (f'<code class="python plain">{line.lstrip()}</code></div>' if line else "&nbsp;</div>")
        )
        + "</div></td></tr></tbody></table></div>"
    ),
    "a division a line (Crayon, EnlighterJS)": (
        '<div class="crayon-syntax"><div class="crayon-main"><table class="crayon-table"><tr class="crayon-row"><td class="crayon-nums">'
        '<div class="crayon-nums-content">'
        + _join(lambda n, _: f'<div class="crayon-num" data-line="crayon-{n}">{n}</div>')
        + '</div></td><td class="crayon-code"><div class="crayon-pre">'
        + _join(lambda n, line: f'<div class="crayon-line" id="crayon-{n}"><span class="crayon-h">{_indented(line) or "&nbsp;"}</span></div>')
        + "</div></td></tr></table></div></div>"
    ),
    "an item a line (Google code prettify)": (
        '<pre class="prettyprint linenums prettyprinted"><ol class="linenums">'
        + _join(lambda n, line: f'<li class="L{n - 1}"><span class="pln">{line}</span></li>')
        + "</ol></pre>"
    ),
    "a span a line without line ends (Shiki)": (
        '<pre class="shiki"><code>' + _join(lambda _, line: f'<span class="line"><span style="color:#24292E">{line}</span></span>', "\n") + "</code></pre>"
    ),
    "a division a line in code (Docusaurus)": (
        '<div class="language-python codeBlockContainer"><pre tabindex="0" class="prism-code language-python"><code class="codeBlockLines">'
        + _join(lambda _, line: f'<span class="token-line" style="color:#393A34"><span class="token plain">{line}</span><br></span>')
        + "</code></pre></div>"
    ),
    "numbers beside each line (Chroma, Hugo)": (
        '<div class="highlight"><pre tabindex="0" class="chroma"><code class="language-python">'
        + _join(
            lambda n, line: f'<span class="line"><span class="ln">{n:2d}</span><span class="cl">{line}\n</span></span>'
        )
        + "</code></pre></div>"
    ),
    "numbers after the code (Prism)": (
        f'<pre class="language-python line-numbers"><code class="language-python">{_SPANS}<span aria-hidden="true" '
        f'class="line-numbers-rows">{_join(lambda *_: "<span></span>")}</span></code></pre>'
    ),
    "a pre a line (CodeMirror)": (
        '<div class="CodeMirror cm-s-default"><div class="CodeMirror-code">'
        + _join(lambda _, line: f'<pre class=" CodeMirror-line " role="presentation"><span role="presentation">{line or "&#8203;"}</span></pre>')
        + "</div></div>"
    ),
    "a division a line (Monaco)": (
        '<div class="monaco-editor"><div class="view-lines">'
        + _join(lambda _, line: f'<div class="view-line"><span><span class="mtk1">{line.replace(" ", "&nbsp;")}</span></span></div>')
        + "</div></div>"
    ),
    "line breaks (old blogs)": "<code>" + _join(lambda _, line: _indented(line), "<br>") + "</code>",
    "line breaks and line ends (WordPress)": "<p><code>" + _join(lambda _, line: _indented(line), "<br />\n") + "</code></p>",
    "line breaks in pre (Medium, Blogger)": '<pre class="graf graf--pre">' + _join(lambda _, line: line, "<br>") + "</pre>",
    "a code a line (Confluence, wikis)": "<div class='code panel'>" + _join(lambda _, line: f"<div><code>{_indented(line) or '&nbsp;'}</code></div>") + "</div>",
    "a paragraph a line (mail, Word)": '<div class="code">' + _join(lambda _, line: f"<p class='MsoNormal'><tt>{_indented(line) or '&nbsp;'}</tt></p>") + "</div>",
    "Jupyter": (
        '<div class="jp-Cell jp-CodeCell"><div class="jp-InputPrompt jp-InputArea-prompt">In&nbsp;[1]:</div><div class="jp-CodeMirrorEditor">'
        f'<div class="CodeMirror cm-s-jupyter"><div class="highlight hl-ipython3"><pre><span></span>{_SPANS}\n</pre></div></div></div></div>'
    ),
    "answer of a forum": f'<div class="answer"><div class="s-prose js-post-body" itemprop="text"><p>Try it so:</p><pre class="lang-py s-code-block"><code class="hljs">{_SPANS}\n</code></pre></div></div>',
    "quoted in a list": f"<ol><li><p>Write the function:</p><pre><code>{_PLAIN}\n</code></pre></li><li><p>Call it.</p></li></ol>",
    "folded": f"<details><summary>The listing</summary><figure class='highlight'><pre><code>{_PLAIN}\n</code></pre></figure></details>",
    "with a button to copy": (
        '<div class="codehilite"><div class="code-header"><span>python</span><button class="copy">Copy</button></div>'
        f"<pre><code>{_SPANS}</code></pre></div>"
    ),
    "in tabs": (
        '<div class="tabbed-set"><div class="tabbed-labels"><label for="t1">Python</label></div><div class="tabbed-content">'
        f'<div class="tabbed-block"><div class="highlight"><pre><code>{_SPANS}\n</code></pre></div></div></div></div>'
    ),
}  # fmt: skip


def code_pages() -> dict[str, tuple[str, list[str]]]:
    """Name of the way -> (page, lines that should survive)."""
    return {name: (page(body), [line for line in LISTING if line]) for name, body in CODE_PAGES.items()}
