"""Hand-written pages, one for each way in which the web writes formulas, with the TeX that should survive."""

_PROSE = (
    "<p>This part of the lesson explains where the relation comes from, which quantities it joins, and when it may be "
    "used. The reader "
    "should follow each step with pencil and paper, since the argument is short and every line of it is needed later on.</p>"
)


def page(body: str) -> str:
    """A page of a lesson around ``body``."""
    links = "".join(f"<li><a href='/{i}'>Lesson {i}</a></li>" for i in range(6))
    return (
        f"<!DOCTYPE html><html><head><title>Lesson</title></head><body><nav><ul>{links}</ul></nav><main>"
        f"<h1>A lesson</h1>{_PROSE}{body}{_PROSE}</main><footer>Printed on paper</footer></body></html>"
    )


_KATEX = (
    '<span class="katex"><span class="katex-mathml"><math '
    'xmlns="http://www.w3.org/1998/Math/MathML"><semantics><mrow><mi>a</mi></mrow>'
    '<annotation encoding="application/x-tex">{0}</annotation></semantics></math></span><span class="katex-html" '
    'aria-hidden="true">'
    '<span class="base"><span class="mord mathnormal">a</span></span></span></span>'
)
FORMULA_PAGES: dict[str, tuple[str, list[str]]] = {
    "MathML with a TeX annotation": (
        page(
            "<p>Then <math><semantics><mrow><msup><mi>a</mi><mn>2</mn></msup></mrow>"
            '<annotation encoding="application/x-tex">a^2+b^2=c^2</annotation></semantics></math> holds.</p>'
        ),
        ["a^2+b^2=c^2"],
    ),
    "MathML with alttext": (
        page(
            '<p>The area is <math alttext="{\\displaystyle A=\\pi r^{2}}"><mi>A</mi><mo>=</mo><mi>π</mi></math> and no more.</p>'
            '<math display="block" alttext="e^{i\\pi}+1=0"><mi>e</mi></math>'
        ),
        ["A=\\pi r^{2}", "e^{i\\pi}+1=0"],
    ),
    "MathML alone": (
        page(
            "<p>Half is <math><mfrac><mn>1</mn><mn>2</mn></mfrac></math>, and <math><msub><mi>x</mi><mi>i</mi></msub><mo>=</mo>"
            "<msqrt><mi>y</mi></msqrt></math> for all.</p>"
        ),
        ["\\frac{1}{2}", "x_{i}=\\sqrt{y}"],
    ),
    "MathJax 2 scripts": (
        page(
            '<p>Let <span class="MathJax_Preview"></span><span class="MathJax" id="e1"><span>f</span></span>'
            '<script type="math/tex" id="e1s">f(x) = \\int_0^x g(t)\\,dt</script> be given.</p>'
            '<script type="math/tex; mode=display">\\sum_{k=1}^n k = \\frac{n(n+1)}{2}</script>'
        ),
        ["f(x)=\\int_0^xg(t)\\,dt", "\\sum_{k=1}^nk=\\frac{n(n+1)}{2}"],
    ),
    "KaTeX": (
        page(
            "<p>So " + _KATEX.format("v = \\frac{ds}{dt}") + " and <span class='katex-display'>" + _KATEX.format("F = m a")
            + "</span></p>"
        ),
        ["v=\\frac{ds}{dt}", "F=ma"],
    ),
    "MathJax 3": (
        page(
            '<p>Thus <mjx-container class="MathJax" jax="CHTML"><mjx-math aria-hidden="true"></mjx-math><mjx-assistive-mml>'
            '<math alttext="p \\le q"><mi>p</mi><mo>≤</mo><mi>q</mi></math></mjx-assistive-mml></mjx-container> always.</p>'
        ),
        ["p\\leq"],
    ),
    "pictures": (
        page(
            '<p>Here <img class="latex" alt="\\lim_{n \\to \\infty} a_n" src="1.png"> exists, and '
            '<img class="mwe-math-fallback-image-inline" alt="{\\displaystyle x_{0}=1}" src="2.svg"> too.</p>'
        ),
        ["\\lim_{n\\to\\infty}a_n", "x_{0}=1"],
    ),
    "TeX in the text": (page("<p>We know that \\(u \\cdot v = 0\\) and $$\\nabla f = \\lambda \\nabla g$$ hold.</p>"),
                        ["\\(u\\cdotv=0\\)", "\\nablaf=\\lambda\\nablag"]),
}  # fmt: skip
