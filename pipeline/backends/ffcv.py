"""The ffcv backend: FFCV's decoder and the fused kernel, for every source of encoded images.

JPEGs go to the kernel as they are. What is none (PNG, WebP, PPM), what EXIF wants turned and what libjpeg-turbo warns
of is decoded by Pillow first. On a GPU the kernel stops after resampling and flip: uint8 crops go across, and color,
blur and normalisation are done there.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.backends.device_color import finish_on_gpu
from pipeline.batch import DecodeFailure, Request
from pipeline.crops import Crops
from pipeline.dataset.images import BadImage, decode
from pipeline.dataset.ppm import from_ppm
from pipeline.draw import Draw

AHEAD = 2  # batches under way: one in the kernel, one prepared


class FfcvBackend:
    """Executes draws with `threads` threads; `device_id` None is the CPU, else color and blur run on that GPU.

    Crops are channels-last views (N, 3, size, size) of `dtype`: float32 (the default on the CPU), float16 (on a GPU),
    bfloat16, or on the CPU uint8, which is what goes across to a GPU: neither color nor blur. Their memory is used
    again once nobody holds them.
    """

    def __init__(
        self,
        crops: Crops,
        batch_size: int,
        threads: int,
        device_id: int | None = None,
        dtype: torch.dtype | None = None,
    ):
        from pipeline.kernel.kernel import Kernel

        del batch_size
        self.crops = crops
        self.device_id = device_id
        self.dtype = dtype or (torch.float32 if device_id is None else torch.float16)
        on_cpu = device_id is None
        self.kernel = Kernel(crops, threads, str(self.dtype).removeprefix("torch.") if on_cpu else "uint8")  # type: ignore[arg-type]
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="pillow")
        self.ahead = ThreadPoolExecutor(AHEAD, thread_name_prefix="batch")
        self.free: dict[tuple[int, ...], list[np.ndarray]] = {}  # buffers that nobody holds, by shape

    def stream(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[torch.Tensor]]]:
        """Crops of each request, in order. Raises DecodeFailure for an undecodable image.

        While the kernel makes one batch, the next is prepared and the one after that is read, so that its threads wait
        for nobody.
        """
        under_way: deque[tuple[Request, list[np.ndarray], Future[None]]] = deque()
        while True:
            while len(under_way) < AHEAD and (request := next(requests, None)) is not None:
                buffers = self._buffers(len(request.rows))
                under_way.append((request, buffers, self.ahead.submit(self._fill, request, buffers)))
            if not under_way:
                return
            request, buffers, filled = under_way.popleft()
            try:
                filled.result()
            except BadImage as error:
                wait(later for _, _, later in under_way)
                raise DecodeFailure(error.reason, [request, *(later for later, _, _ in under_way)]) from None
            request.encoded = []  # 20 MB of a batch of 256, that would else wait with its crops
            yield request, self._finish(request.draw, buffers)

    def decodes(self, encoded: np.ndarray) -> bool:
        """Whether these bytes give pixels: Pillow has the last word here."""
        try:
            decode(encoded.tobytes())
        except BadImage:
            return False
        return True

    def close(self) -> None:
        """End all threads."""
        for pool in (self.ahead, self.pool):
            pool.shutdown(cancel_futures=True)
        self.kernel.close()

    # ------------------------------------------------------------------ one batch
    def _fill(self, request: Request, buffers: list[np.ndarray]) -> None:
        """Make the request's crops in `buffers`. Raises BadImage where an image gives no pixels."""
        images, height, width = list(request.encoded), request.height, request.width
        jpeg = np.array([image[:2].tobytes() == b"\xff\xd8" for image in images], bool)
        self._decode(images, np.flatnonzero(~jpeg), height, width)
        status = self.kernel.run(images, jpeg, height, width, request.draw, buffers)
        rest = np.flatnonzero(status)
        if len(rest):
            self._decode(images, rest, height, width)
            part = self.kernel.buffers(len(rest))
            some = [images[index] for index in rest]
            self.kernel.run(some, np.zeros(len(rest), bool), height[rest], width[rest], _take(request.draw, rest), part)
            for whole, crops in zip(buffers, part, strict=True):
                whole[:, rest] = crops

    def _decode(self, images: list[np.ndarray], which: Sequence[int] | np.ndarray, height: Any, width: Any) -> None:
        """Put pixels (H, W, 3) in the place of the encoded images `which`."""

        def pixels(index: int) -> np.ndarray:
            found = from_ppm(images[index])
            if found is None:
                found = decode(images[index].tobytes())
            if found.shape[:2] != (height[index], width[index]):  # the file changed since the table was made
                found = np.asarray(Image.fromarray(found).resize((int(width[index]), int(height[index]))))
            return found

        for index, found in zip(which, self.pool.map(pixels, which), strict=True):
            images[index] = found

    # ------------------------------------------------------------------ memory
    def _buffers(self, batch: int) -> list[np.ndarray]:
        """Outputs for the kernel, one a resolution: (views, batch, size, size, 3), used ones where there are any."""
        buffers = []
        for new in self.kernel.buffers(batch):  # costs nothing until it is written
            if self.free.get(new.shape):
                buffers.append(self.free[new.shape].pop())
            elif self.device_id is None:
                buffers.append(new)
            else:
                buffers.append(torch.empty(new.shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).numpy())
        return buffers

    def _finish(self, draw: Draw, buffers: list[np.ndarray]) -> list[torch.Tensor]:
        """The crops as tensors, on a GPU with color, blur and normalisation done there."""
        tensors = []
        for buffer in buffers:
            lent = buffer.view()  # a tensor made of it keeps it alive, and when it goes the buffer is free again
            weakref.finalize(lent, self.free.setdefault(buffer.shape, []).append, buffer)
            bits = torch.from_numpy(lent)
            tensors.append(bits.view(torch.bfloat16) if buffer.dtype == np.uint16 else bits)
        if self.device_id is not None:
            tensors = finish_on_gpu(tensors, draw, self.crops, torch.device("cuda", self.device_id), self.dtype)
        return [tensor.flatten(0, 1).permute(0, 3, 1, 2) for tensor in tensors]


def _take(draw: Draw, rows: np.ndarray) -> Draw:
    """Some rows of a draw."""
    return Draw(**{field.name: getattr(draw, field.name)[rows] for field in fields(Draw)})
