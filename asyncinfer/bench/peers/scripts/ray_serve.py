"""Ray Serve: its own batching, one replica a core, raw bytes as the request's body."""

import ray
from common import BATCH, FOLDER, PORT, WORKERS, Commands, model, predict, versions
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request


@serve.deployment(
    num_replicas=WORKERS, max_ongoing_requests=2 * BATCH, ray_actor_options={"num_cpus": 1}
)
class Classifier:
    """Images in batches to labels."""

    def __init__(self) -> None:
        model()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.001)
    async def label(self, images: list[bytes]) -> list[int]:
        return predict(images)

    async def __call__(self, request: Request) -> dict[str, int]:
        return {"label": await self.label(await request.body())}


if __name__ == "__main__":
    commands = Commands()
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _temp_dir=str(FOLDER / "ray"),
        logging_level="warning",
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=PORT))
    serve.run(
        Classifier.bind(),
        route_prefix="/",
        name="peer",
        logging_config={"enable_access_log": False},
    )
    commands.reply(versions=versions("ray", "torch"))
    for _ in commands:
        pass
    ray.shutdown()
