"""mosec: its own dynamic batching, one process a core, raw bytes as the request's body."""

from common import BATCH, WORKERS, Commands, model, predict, versions
from mosec import Server, Worker


class Classifier(Worker):
    """Images in batches to labels."""

    def __init__(self) -> None:
        super().__init__()
        model()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, int]]:
        return [{"label": label} for label in predict(data)]


if __name__ == "__main__":
    commands = Commands()
    commands.reply(versions=versions("mosec", "torch"))
    commands.stop_at_end()
    server = Server()
    server.append_worker(Classifier, num=WORKERS, max_batch_size=BATCH, max_wait_time=1)
    server.run()
