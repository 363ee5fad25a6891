"""A chat endpoint as a judge: any server that speaks OpenAI's `/chat/completions`, asked for JSON.

What it said is kept as it comes in, so an interrupted run goes on where it was and nothing is asked (or paid) twice.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

from herd.alignment.quality.judges import JudgeConfig, Question, Verdict, certain
from herd.config.errors import UserError
from herd.runs.atomic import sha256_json
from herd.runs.progress import progress

_OBJECT = re.compile(r"\{[^{}]*\}")
_TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)  # worth asking again
_FIRST_PAUSE = 0.5  # seconds before the second attempt; doubled each time
_MOST_TOKENS = 200  # of an answer: JSON, and the reasons that some models cannot keep to themselves


class EndpointJudge:
    """Asks at temperature 0; an answer that is no JSON object with one of the choices leaves the question without a verdict."""

    def __init__(self, config: JudgeConfig, scratch: Path) -> None:
        self._config = config
        self._said_file = scratch / "judge_endpoint.jsonl"
        self._said: dict[str, str] = {}
        self._lock = threading.Lock()
        lines = self._said_file.read_text(encoding="utf-8").splitlines(keepends=True) if self._said_file.exists() else []
        for line in lines:
            if line.endswith("\n"):  # the last one may be cut short
                row = json.loads(line)
                self._said[row["question"]] = row["answer"]
        host = urllib.parse.urlsplit(config.url).hostname or ""
        # A proxy of the environment is for the world, not for this machine.
        handlers = [urllib.request.ProxyHandler({})] if host in ("localhost", "127.0.0.1", "::1") else []
        self._opener = urllib.request.build_opener(*handlers)

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        with progress("asking the judge", len(questions), "questions") as bar, ThreadPoolExecutor(self._config.parallel) as pool:
            waiting = [pool.submit(self._answer, question) for question in questions]
            verdicts = []
            try:
                for question, answer in zip(questions, waiting, strict=True):
                    verdicts.append(_verdict(question, answer.result()))
                    bar.advance()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return verdicts

    def _answer(self, question: Question) -> str:
        choices = ", ".join(json.dumps(answer) for answer in question.answers)
        text = f'{question.text}\n\nReply with JSON alone: {{"answer": X}}, where X is one of {choices}.'
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": _MOST_TOKENS,
        }
        key = sha256_json(body)
        if key in self._said:
            return self._said[key]
        answer = self._post(body)
        with self._lock:
            self._said[key] = answer
            self._said_file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._said_file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"question": key, "answer": answer}) + "\n")
        return answer

    def _post(self, body: dict[str, Any]) -> str:
        """The text of the server's answer; UserError when it cannot be had."""
        url = self._config.url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        if self._config.key_variable:
            key = os.environ.get(self._config.key_variable)
            if not key:
                raise UserError(f"judge.key_variable: the environment has no {self._config.key_variable}.")
            headers["Authorization"] = f"Bearer {key}"
        reason = ""
        for attempt in range(self._config.retries + 1):
            if attempt:
                time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(url, json.dumps(body).encode(), headers)
                with self._opener.open(request, timeout=self._config.timeout) as response:
                    content = json.loads(response.read())["choices"][0]["message"]["content"]
                    if not isinstance(content, str):
                        raise TypeError("no text")
                    return content
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}, {' '.join(error.read(200).decode('utf-8', 'replace').split())}"
                if error.code not in _TRANSIENT:
                    break
            except (OSError, HTTPException) as error:  # no server, a broken connection, no answer in time
                reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            except (ValueError, LookupError, TypeError):
                reason = "its answer is no chat completion"
        attempts = "attempt" if attempt == 0 else "attempts"
        raise UserError(
            f"judge: {url} did not answer after {attempt + 1} {attempts} ({reason}): start the server there, or set judge.url; "
            "the same command goes on from here."
        )


def _verdict(question: Question, said: str) -> Verdict:
    """The last JSON object of the answer that names a choice."""
    for found in reversed(_OBJECT.findall(said)):
        try:
            value = json.loads(found).get("answer")
        except ValueError:
            continue
        if isinstance(value, float) and value == int(value):
            value = int(value)
        if str(value) in question.answers:
            return certain(question.answers.index(str(value)), len(question.answers))
    return Verdict((), "the judge's answer names no choice")
