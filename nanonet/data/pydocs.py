"""A corpus that needs no download: what docstrings say, and which part of Python they belong to.

A text is the first paragraph of the docstring of a module, class or function of the standard library, torch, numpy
or transformers, read from the installed source files (parsed, never imported). Its class is the topic of the path
of its file. So the texts follow the installed versions: results compare on one installation, not across two.

Left out: test folders, texts of fewer than 6 words, and texts that files of two topics share.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Collection, Iterator

from nanonet.data.dataset import Dataset, Split
from nanonet.data.split import digest, in_test_fifth
from nanonet.errors import InputError

_LEAST_WORDS = 6
_LEAST_TEXTS = 100  # a topic with fewer is dropped, as gui is where tkinter is not installed
_ENOUGH_TEXTS = 1000  # no more files of a topic are parsed after that many: torch and transformers hold 100 MB
_PACKAGES = ("torch", "numpy", "transformers")  # the rest is the standard library

# topic: files or folders, relative to the standard library or to site-packages; the longest that fits a file wins
TOPICS = {
    "networking": """asyncio http urllib wsgiref xmlrpc email socket socketserver ssl smtplib ftplib imaplib poplib
        nntplib telnetlib smtpd asyncore asynchat selectors ipaddress mailbox cgi netrc webbrowser""",
    "files and os": """os posixpath ntpath genericpath pathlib shutil tempfile glob fnmatch filecmp fileinput stat
        _pyio tarfile zipfile zipimport zipapp gzip bz2 lzma _compression subprocess multiprocessing threading
        signal pty platform sysconfig site venv ensurepip distutils importlib runpy pkgutil modulefinder compileall
        py_compile shelve dbm sqlite3 getpass mimetypes torch/package""",
    "testing and debugging": """unittest doctest pdb bdb trace traceback tracemalloc cProfile profile pstats timeit
        inspect dis logging warnings linecache code codeop pyclbr symtable numpy/testing torch/profiler
        torch/testing/_internal/common_utils torch/testing/_internal/logging_utils torch/utils/benchmark
        transformers/testing_utils transformers/model_debugging_utils""",
    "language and text": """re string stringprep textwrap difflib ast tokenize token typing types enum dataclasses abc
        collections functools copy operator numbers codecs locale gettext html xml json csv configparser tomllib
        plistlib argparse optparse getopt shlex pprint reprlib lib2to3 pydoc datetime calendar zoneinfo _strptime
        fractions decimal _pydecimal statistics random heapq bisect graphlib colorsys""",
    "gui": "tkinter idlelib turtle turtledemo curses",
    "arrays": "numpy torch/_numpy torch/_refs torch/functional torch/linalg torch/fft torch/special torch/signal",
    "neural networks": "torch/nn torch/optim torch/ao torch/quantization torch/distributions torch/amp torch/autograd",
    "distributed training": """torch/distributed torch/nn/parallel torch/multiprocessing torch/futures
        transformers/distributed""",
    "compilers": """torch/_inductor/codegen torch/_inductor/fx_passes torch/_inductor/scheduler torch/_inductor/graph
        torch/_inductor/lowering torch/_inductor/runtime torch/_dynamo torch/fx torch/_functorch torch/export
        torch/_export torch/compiler torch/_higher_order_ops""",
    "language models": """transformers/generation transformers/models transformers/pipelines transformers/cache_utils
        transformers/tokenization_utils_base transformers/tokenization_utils_tokenizers
        transformers/tokenization_python transformers/masking_utils transformers/modeling_outputs""",
}
# folders; the last two are in numpy, but not about arrays
_LEFT_OUT = {"test", "tests", "idle_test", "__pycache__", "numpy/distutils", "numpy/f2py"}


def pydocs(cap: int = 550) -> Dataset:
    """Return the corpus of docstrings, at most `cap` texts a topic (of 1000), about a fifth of them for testing.

    Nothing depends on an order of files: a topic has its texts with the smallest hashes, and
    split.in_test_fifth(text) sends a text to train or test, so that no text is ever on both sides, whatever is
    installed. Topics with fewer than 100 texts are dropped. Raises InputError where fewer than two are left.
    """
    if not 1 <= cap <= _ENOUGH_TEXTS:
        raise ValueError(f"cap: expected 1 to {_ENOUGH_TEXTS} texts a topic, got {cap}")
    topics = {topic: texts for topic, texts in collect().items() if len(texts) >= _LEAST_TEXTS}
    if len(topics) < 2:
        raise InputError("pydocs: no sources of the standard library, torch, numpy or transformers: give other data")
    sides: dict[bool, tuple[list[str], list[int]]] = {False: ([], []), True: ([], [])}
    for label, texts in enumerate(topics.values()):
        for text in sorted(texts, key=digest)[:cap]:
            side = sides[in_test_fifth(text)]
            side[0].append(text)
            side[1].append(label)
    return Dataset(Split(*sides[False]), Split(*sides[True]), list(topics), "pydocs")


@functools.cache
def collect() -> dict[str, frozenset[str]]:
    """Return {topic: its texts}, in the order of TOPICS, before anything is dropped or capped.

    The files of a topic are parsed in the order of the hashes of their names until they gave 1000 texts.
    """
    topic_of = {prefix: topic for topic, prefixes in TOPICS.items() for prefix in prefixes.split()}
    files: dict[str, list[tuple[int, str]]] = {topic: [] for topic in TOPICS}
    for prefix, name, path in _sources(topic_of):
        files[topic_of[prefix]].append((digest(name), path))
    found: dict[str, set[str]] = {topic: set() for topic in TOPICS}
    for topic, texts in found.items():
        for _, path in sorted(files[topic]):
            texts.update(text for text in _paragraphs(path) if len(text.split()) >= _LEAST_WORDS)
            if len(texts) >= _ENOUGH_TEXTS:
                break
    topics_of = Counter(text for texts in found.values() for text in texts)
    return {topic: frozenset(text for text in texts if topics_of[text] == 1) for topic, texts in found.items()}


def _sources(prefixes: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (prefix, name, path) of every source file, under the longest prefix that fits it.

    The name of a file is its path from the standard library or site-packages on, without `.py`.
    """
    standard = sysconfig.get_paths()["stdlib"]
    left_out = _LEFT_OUT.union(prefix for prefix in prefixes if "/" in prefix)
    for prefix in prefixes:
        package = prefix.split("/")[0]
        spec = importlib.util.find_spec(package) if package in _PACKAGES else None
        if package in _PACKAGES and (spec is None or spec.origin is None):
            continue
        root = standard if spec is None or spec.origin is None else os.path.dirname(os.path.dirname(spec.origin))
        base = os.path.join(root, *prefix.split("/"))
        if os.path.isfile(base + ".py"):
            yield prefix, prefix, base + ".py"
        for folder, folders, files in os.walk(base):
            below = os.path.relpath(folder, root).replace(os.sep, "/")
            folders[:] = [f for f in folders if not {f, f"{below}/{f}"} & left_out]
            for file in files:
                name = f"{below}/{file.removesuffix('.py')}"
                if file.endswith(".py") and name not in prefixes:
                    yield prefix, name, os.path.join(folder, file)


def _paragraphs(path: str) -> Iterator[str]:
    """Yield the first paragraph of every docstring of a file, its white space made single spaces."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(file.read())
    except (SyntaxError, ValueError):  # a template, or written for a newer Python
        return
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield " ".join(docstring.split("\n\n")[0].split())
            nodes.extend(node.body)
