"""``herd chat``: talk to a model in a terminal; its words appear as they are drawn."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from herd.config.errors import UserError, nearest
from herd.dialog.messages import Message, Role
from herd.dialog.render import DIALECTS, render
from herd.generation.choose import SamplingConfig
from herd.generation.engine import PAGE_SIZE, Engine, Request
from herd.generation.opening import Opened, open_generator
from herd.generation.text_stream import TextStream
from herd.generation.tool import printable
from herd.runs.tool import Tool

HELP = "/clear begins anew, /system TEXT sets the system message and begins anew, Ctrl-C stops an answer, Ctrl-D ends."


@dataclass(frozen=True)
class ChatConfig:
    """Whom `herd chat` talks to, and how."""

    model: str  # a run's NAME/NODE, the folder of a stage, or of a model
    system: str = ""  # system message
    tokenizer: str | None = None  # folder with tokenizer.json; null = that of the model's lineage
    dialect: str | None = None  # of messages: meta, meta_tag, hf, torchtune; null = as the model was trained
    max_new_tokens: int = 256  # of an answer, at most
    temperature: float = 0.7  # 0 = always the likeliest token
    top_p: float = 0.9  # smallest set of likeliest tokens whose probability reaches this
    top_k: int = 0  # so many likeliest tokens; 0 = all
    seed: int = 0  # of all draws
    force: bool = False  # talk to a base model too, which has seen no dialogs
    device: str = "cpu"  # cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads of torch; 0 leaves its own choice
    root: str = "runs"  # folder of all runs, where names are looked up

    def __post_init__(self) -> None:
        self.sampling()
        if self.dialect is not None:
            DIALECTS.get(self.dialect)
        if self.threads < 0:
            raise UserError(f"threads is {self.threads}: must be 0 or more.")

    def sampling(self) -> SamplingConfig:
        """How tokens are drawn."""
        return SamplingConfig(self.max_new_tokens, self.temperature, self.top_p, self.seed, self.top_k)


class Conversation:
    """What has been said, and the model that answers.

    Args:
        opened: model and tokenizer.
        sampling: of every answer.
        system: system message; empty = none.
        dialect: how messages become tokens.
    """

    def __init__(self, opened: Opened, sampling: SamplingConfig, system: str = "", dialect: str = "meta") -> None:
        window = opened.model.config.max_seq_len
        self._tokenizer, self._sampling, self._dialect, self._window = opened.tokenizer, sampling, dialect, window
        self._engine = Engine(opened.model, 1, (-(-window // PAGE_SIZE) + 1) * PAGE_SIZE)  # prompt and answer each end on a page
        self.begin(system)

    def begin(self, system: str) -> None:
        """Forget all that was said."""
        self._first = (Message(Role.SYSTEM, system),) if system else ()
        self._said: list[Message] = []

    def say(self, text: str) -> int:
        """Add a user's message; how many older messages were dropped, so that it and the answer fit the window.

        Raises:
            UserError: the message alone does not fit; it is not added.
        """
        said = [*self._said, Message(Role.USER, text)]
        dropped = 0
        while len(self._tokens(said)) + self._sampling.max_new_tokens > self._window:
            if len(said) - dropped <= 1:
                length = len(self._tokens(said))
                raise UserError(
                    f"the message and its frame have {length} tokens; with max_new_tokens={self._sampling.max_new_tokens} the "
                    f"model's window of {self._window} cannot hold them."
                )
            said, dropped = said[2:], dropped + 2  # a question with its answer
        self._said = said
        return dropped

    def answer(self) -> Iterator[str]:
        """The answer, piece by piece; what was drawn is remembered, also when the reader stops."""
        stream = TextStream(self._tokenizer)
        request = Request(tuple(self._tokens(self._said)), 1, self._sampling, frozenset(self._tokenizer.stop_ids))
        number = self._engine.submit(request)
        try:
            while self._engine.busy:
                for drawn in self._engine.step():
                    yield stream.push(drawn.token)
            yield stream.end()
        finally:
            self._engine.cancel(number)
            self._said.append(Message(Role.ASSISTANT, stream.text))

    def _tokens(self, said: list[Message]) -> list[int]:
        return render((*self._first, *said), self._tokenizer, generation_prompt=True, dialect=self._dialect).tokens.tolist()


def run(config: ChatConfig) -> None:
    """Read lines and answer them until the input ends."""
    opened = open_generator(config.model, config.root, config.tokenizer, config.device, config.threads, config.dialect)
    if opened.base and not config.force:
        raise UserError(
            f"{config.model} is a base model (herd {opened.base}): it continues text and has seen no dialogs. Continue text with "
            "`herd generate`, give a model after sft or dpo, or talk to it all the same with force=true."
        )
    talk = Conversation(opened, config.sampling(), config.system, opened.dialect)
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (line editing and history for input())

        print(HELP)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends)")
            continue
        if line:
            _turn(talk, line)


def _turn(talk: Conversation, line: str) -> None:
    """A command, or a message and its answer."""
    command, _, rest = line.partition(" ")
    if command in ("/clear", "/system"):
        talk.begin(rest.strip() if command == "/system" else "".join(m.content for m in talk._first))
        print("(begun anew)")
        return
    if command == "/help":
        print(HELP)
        return
    if re.fullmatch(r"/[a-z]+", command):  # a mistyped command is no question; a path has another slash, a dot or a digit
        print(f"(no command {command}.{nearest(command, ('/clear', '/system', '/help'))} /help lists them)")
        return
    try:
        dropped = talk.say(line)
    except UserError as error:
        print(f"({error})")
        return
    if dropped:
        print(f"({dropped} older messages dropped: the model's window is full)")
    try:
        for piece in talk.answer():
            print(printable(piece), end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="")
    print()


TOOL = Tool(
    name="chat",
    config=ChatConfig,
    run=run,
    summary="talk to a model in the terminal",
    verbatim=("model", "system", "tokenizer", "root"),
    help=f"""herd chat model=runs/laptop/round-2/dpo
herd chat model=laptop/round-2/dpo system='Answer in one line.' temperature=0

{HELP} Lines may also come from a pipe.""",
)
