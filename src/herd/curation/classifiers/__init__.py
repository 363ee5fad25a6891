"""Linear classifiers of documents: quality, code, maths, knowledge; and what every one of them must say about itself."""
