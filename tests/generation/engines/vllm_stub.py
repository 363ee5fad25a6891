"""A server with the answers of vLLM's OpenAI interface, as far as sampling asks it, and a script: ``vllm_stub.py PORT [NAME]``.

The shapes are those of vLLM's source: ``vllm/entrypoints/openai/completion/protocol.py`` (CompletionRequest, CompletionResponse,
CompletionResponseChoice, CompletionLogProbs), ``.../completion/serving.py`` (request_output_to_completion_response),
``.../openai/engine/protocol.py`` (ModelCard, ModelList, ErrorResponse) as of 2026; ``token_ids`` ends with the stop token, which
is no part of ``text`` (``vllm/v1/engine/detokenizer.py``), and ``stop_reason`` names it.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WINDOW = 512


class VllmStub(ThreadingHTTPServer):
    """Draws ``seed % 50 + 50``, then the number of the sample + 40, then the first stop id, or goes on to ``max_tokens``.

    Attributes:
        bodies: of the requests for completions, in the order in which they came.
        turn: called with a body and how many came before it; what it returns, (status, body), goes out in place of the answer.
    """

    def __init__(self, port: int = 0, turn=None, name: str = "tiny") -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.bodies: list[dict] = []
        self.turn = turn or (lambda body, earlier: None)
        self.name = name

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:  # a client that went away is no matter
        pass


def completion(body: dict) -> dict:
    choices = []
    for k in range(body["n"]):
        ids = [body["seed"] % 50 + 50, k + 40, body["stop_token_ids"][0]][: body["max_tokens"]]
        stopped = len(ids) == 3
        logprobs = {
            "text_offset": list(range(len(ids))),
            "token_logprobs": [-0.5 * (i + 1) for i in range(len(ids))],
            "tokens": [f"t{i}" for i in ids],
            "top_logprobs": [{f"t{i}": -0.5 * (n + 1)} for n, i in enumerate(ids)],
        }
        choices.append(
            {
                "index": k,
                "text": "".join(f"t{i}" for i in (ids[:-1] if stopped else ids)),
                "logprobs": logprobs,
                "finish_reason": "stop" if stopped else "length",
                "stop_reason": ids[-1] if stopped else None,
                "token_ids": ids,
                "prompt_logprobs": None,
                "prompt_token_ids": body["prompt"],
                "routed_experts": None,
            }
        )
    usage = {"prompt_tokens": len(body["prompt"]), "total_tokens": 0, "completion_tokens": 0, "prompt_tokens_details": None}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"], "service_tier": None}
    return head | {"system_fingerprint": None, "choices": choices, "usage": usage, "kv_transfer_params": None}


def error(status: int, message: str) -> tuple[int, dict]:
    return status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, None)
        elif self.path == "/version":
            self._send(200, {"version": "0.11.0"})
        elif self.path == "/v1/models":
            card = {"id": self.server.name, "object": "model", "created": 1, "owned_by": "vllm", "root": "/m", "parent": None}
            self._send(200, {"object": "list", "data": [card | {"max_model_len": WINDOW, "permission": []}]})
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        turned = self.server.turn(body, len(self.server.bodies) - 1)
        if turned == "hang up":
            self.close_connection = True
        else:
            self._send(*(turned or (200, completion(body))))

    def _send(self, status: int, body: object) -> None:
        data = body.encode() if isinstance(body, str) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    print("stub: begun", flush=True)
    VllmStub(int(sys.argv[1]), name=sys.argv[-1] if len(sys.argv) > 2 else "tiny").serve_forever()
