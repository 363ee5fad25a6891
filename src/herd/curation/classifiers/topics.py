"""Knowledge categories: which subject a document is about.

The paper finds categories that the web has too much of (arts and entertainment) and samples them down; which categories there
are, it does not say. Any set of labels in a file of examples makes a classifier. The built-in set has the subjects that a
Python installation documents, after the sections of the library reference; it exercises the machinery and suits corpora about
software. It knows nothing of the arts.
"""

import re

from herd.curation.text import word_set

_MODULES = {
    "concurrency": "asyncio concurrent contextvars multiprocessing queue sched select selectors subprocess threading signal",
    "development": "bdb cProfile doctest ensurepip pdb profile pstats pydoc timeit trace tracemalloc unittest venv zipapp",
    "formats": "base64 binascii configparser csv dbm json marshal netrc pickle pickletools plistlib quopri shelve sqlite3 struct "
    "tomllib xdrlib bz2 gzip lzma tarfile zipfile zlib html xml",
    "language": "abc ast code codeop compileall copy copyreg dataclasses dis enum functools importlib inspect keyword opcode "
    "operator pkgutil py_compile pyclbr runpy symtable token tokenize traceback types typing warnings weakref",
    "networking": "email ftplib http imaplib ipaddress mailbox mimetypes nntplib poplib smtplib socket socketserver ssl "
    "telnetlib urllib webbrowser wsgiref xmlrpc cgi",
    "system": "argparse cmd ctypes curses errno filecmp fileinput fnmatch getopt getpass glob io logging ntpath os optparse "
    "pathlib platform posixpath pty resource shlex shutil stat tempfile tty zoneinfo datetime calendar",
    "text": "codecs difflib gettext locale pprint re reprlib sre_compile sre_parse string stringprep textwrap unicodedata",
    "mathematics": "bisect cmath colorsys decimal fractions graphlib heapq numbers random statistics",
}
_CATEGORIES = {module: category for category, modules in _MODULES.items() for module in sorted(word_set(modules))}
# Parts of scientific packages, by the first name that fits.
_SCIENCE = (
    (re.compile(r"scipy\.(stats|cluster)\b|sympy\.stats\b|numpy\.random\b"), "statistics"),
    (
        re.compile(r"scipy\.(signal|fft|fftpack|ndimage)\b|numpy\.fft\b|sympy\.physics\b|scipy\.constants\b"),
        "physics and signals",
    ),
    (
        re.compile(r"scipy\.(linalg|sparse|optimize|integrate|interpolate|special|spatial)\b|numpy\.(linalg|polynomial)\b"),
        "mathematics",
    ),
    (re.compile(r"sympy\.(?!printing|parsing|utilities|testing|external|plotting|codegen|interactive)"), "mathematics"),
)


def category_of(module: str) -> str | None:
    """Category of a module by its dotted name; None where it has none."""
    for pattern, category in _SCIENCE:
        if pattern.match(module):
            return category
    return _CATEGORIES.get(module.partition(".")[0])
