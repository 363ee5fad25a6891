"""The quality classifier's former place."""

from herd.curation.classifiers.linear import passages as chunks
from herd.curation.classifiers.quality import QualityClassifier, reference_documents

__all__ = ["QualityClassifier", "chunks", "reference_documents"]
