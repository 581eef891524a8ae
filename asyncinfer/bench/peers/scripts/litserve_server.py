"""LitServe: its own batching, one worker process a core, base64 in JSON as the request's body."""

import base64

import litserve
from common import BATCH, PORT, WORKERS, Commands, model, predict, versions


class Classifier(litserve.LitAPI):
    """Images in batches to labels."""

    def setup(self, device: str) -> None:
        model()

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, batch: list[bytes]) -> list[int]:
        return predict(batch)

    def unbatch(self, output: list[int]) -> list[int]:
        return output

    def encode_response(self, output: int) -> dict[str, int]:
        return {"label": output}


if __name__ == "__main__":
    commands = Commands()
    commands.reply(versions=versions("litserve", "torch"))
    commands.stop_at_end()
    server = litserve.LitServer(
        Classifier(max_batch_size=BATCH, batch_timeout=0.002),
        accelerator="cpu",
        workers_per_device=WORKERS,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
