"""What one writes in ten minutes: the same model behind FastAPI and uvicorn, one process, a request computed where it arrives.

python bench/scripts/minimal_server.py DIR PORT inline|threads
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from lepton_trainer.train.serving import models
from lepton_trainer.train.storage import open_storage


class Request(BaseModel):
    instances: list[list[list[list[float]]]]


def application(directory: str, inline: bool) -> FastAPI:
    storage = open_storage(directory)
    served = models.load(storage, models.found(storage), torch.device("cpu"))
    encoder: Any = served.adapter
    app = FastAPI()

    def answer(request: Request) -> dict[str, Any]:
        with torch.inference_mode():
            chances = served.model(encoder.encoder(torch.tensor(request.instances))).softmax(dim=1)
        labels = encoder.encoder.labels
        return {
            "predictions": [
                {"label": labels[index], "index": index, "probability": row[index], "probabilities": row}
                for index, row in zip(chances.argmax(dim=1).tolist(), chances.tolist(), strict=True)
            ]
        }

    if inline:

        @app.post("/predict")
        async def predict(request: Request) -> dict[str, Any]:
            return answer(request)
    else:
        app.post("/predict")(answer)
    return app


if __name__ == "__main__":
    directory, port, kind = sys.argv[1:4]
    torch.set_num_threads(1)
    uvicorn.run(application(directory, kind == "inline"), host="127.0.0.1", port=int(port), log_level="warning")
