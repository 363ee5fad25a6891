"""``herd serve``: a model behind OpenAI's interface, on this machine."""

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from socket import AF_INET, AF_INET6, create_server, socket

from herd.config.errors import UserError
from herd.dialog.render import DIALECTS
from herd.generation.engine import PAGE_SIZE, Engine
from herd.generation.opening import open_generator
from herd.generation.service import Service
from herd.runs.tool import Tool

_LOCAL = ("127.0.0.1", "localhost", "::1")
_PATIENCE = 2  # seconds that clients have to take the end of what was drawn, once it was interrupted


@dataclass(frozen=True)
class ServeConfig:
    """What `herd serve` offers, and where."""

    model: str  # a run's NAME/NODE, the folder of a stage, or of a model
    name: str | None = None  # what clients call it; null = `model` as given
    tokenizer: str | None = None  # folder with tokenizer.json; null = that of the model's lineage
    dialect: str | None = None  # of messages: meta, meta_tag, hf, torchtune; null = as the model was trained
    host: str = "127.0.0.1"  # address to listen at; any other than this machine's own lets others in, without a password
    port: int = 8000  # 0 = any that is free
    batch_size: int = 16  # answers drawn together
    max_kv_tokens: int = 0  # positions whose keys and values are held at once; 0 = four times the model's window
    max_new_tokens: int = 512  # of a chat answer, when the client does not say
    device: str = "cpu"  # cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads of torch; 0 leaves its own choice
    root: str = "runs"  # folder of all runs, where names are looked up

    def __post_init__(self) -> None:
        if self.dialect is not None:
            DIALECTS.get(self.dialect)
        if not 0 <= self.port < 65536:
            raise UserError(f"port is {self.port}: must lie between 0 and 65535.")
        if min(self.batch_size, self.max_new_tokens) < 1 or min(self.threads, self.max_kv_tokens) < 0:
            raise UserError("batch_size and max_new_tokens must be 1 or more, threads and max_kv_tokens 0 or more.")


def run(config: ServeConfig) -> None:
    """Serve until interrupted."""
    try:
        for module in ("starlette", "uvicorn"):
            import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"`herd serve` needs the extra `serve` ({error.name} is missing): pip install 'herd[serve]'.") from None

    with _listen(config.host, config.port) as listening:
        _serve(config, listening)


def _serve(config: ServeConfig, listening: socket) -> None:
    import uvicorn

    from herd.generation.openai.app import Served, make_app

    opened = open_generator(config.model, config.root, config.tokenizer, config.device, config.threads, config.dialect)
    window = opened.model.config.max_seq_len
    positions = config.max_kv_tokens or 4 * -(-window // PAGE_SIZE) * PAGE_SIZE
    engine = Engine(opened.model, config.batch_size, positions)
    local = config.host in _LOCAL
    served = Served(
        name=config.name or config.model,
        tokenizer=opened.tokenizer,
        service=Service(engine),
        window=min(window, positions),
        longest=config.max_new_tokens,
        dialect=opened.dialect,
        # A page in a browser must not reach this machine under a name of its own (DNS rebinding).
        hosts=_LOCAL if local else ("*",),
    )
    gigabytes = (engine.storage.keys.nbytes + engine.storage.values.nbytes) / 1e9
    print(f"{served.name}: {config.batch_size} answers at once, {positions:,} tokens of keys and values ({gigabytes:.2f} GB)")
    if opened.base:
        print(f"This is a base model (herd {opened.base}), which has seen no dialogs: /v1/completions suits it, chat does not.")
    if not local:
        print(f"Listening at {config.host}: others can reach it, and there is no password.")

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket] | None = None) -> None:
            served.service.close()  # before it waits for answers to end
            await super().shutdown(sockets)

    name = f"[{config.host}]" if ":" in config.host else config.host
    print(f"Clients' base_url: http://{name}:{listening.getsockname()[1]}/v1 (Ctrl-C ends it)", flush=True)
    options = uvicorn.Config(make_app(served), log_level="warning", access_log=False, timeout_graceful_shutdown=_PATIENCE)
    with suppress(KeyboardInterrupt):  # the way to end it
        Server(options).run(sockets=[listening])


def _listen(host: str, port: int) -> socket:
    """Taken before anything is loaded, so that a port in use is told at once."""
    try:
        return create_server((host, port), family=AF_INET6 if ":" in host else AF_INET)
    except OSError as error:
        what = f"Cannot listen at {host}, port {port} ({error.strerror or error})"
        raise UserError(f"{what}: give another `port` (0 = any that is free) or `host`.") from None


TOOL = Tool(
    name="serve",
    config=ServeConfig,
    run=run,
    summary="a model behind OpenAI's interface, on this machine",
    verbatim=("model", "name", "tokenizer", "root", "host"),
    help="""herd serve model=runs/laptop/round-2/dpo
herd serve model=laptop/pretrain port=8001 max_kv_tokens=65536

  GET /v1/models    POST /v1/chat/completions    POST /v1/completions    GET /health

With OpenAI's client: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none"). Of a body's keys, n, seed, temperature, top_p,
top_k, max_tokens, stop, stream and logprobs with alternatives count, of a chat's tools, of a text's echo; what would change the
answer and is not offered is refused. Requests that come at the same time are drawn together, and no answer depends on the others:
with a seed it is the same each time. A call of an offered tool that ends an answer counts as one, also after text.

lm-evaluation-harness, log-likelihoods too (its `model` is `name` here, its `tokenizer` the folder of the model's):
lm_eval --model local-completions --tasks arc_easy \\
  --model_args base_url=http://127.0.0.1:8000/v1/completions,model=NAME,tokenizer=FOLDER,max_length=1024""",
)
