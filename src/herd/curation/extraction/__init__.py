"""HTML -> text: boilerplate out, code and formulas kept (paper, section 3.1.1)."""

from herd.curation.extraction.config import MATHS_AND_CODE, ExtractionConfig
from herd.curation.extraction.encoding import Refusal, decode
from herd.curation.extraction.extract import extract_html
from herd.curation.extraction.guards import Cost, cost

__all__ = ["MATHS_AND_CODE", "Cost", "ExtractionConfig", "Refusal", "cost", "decode", "extract_html"]
