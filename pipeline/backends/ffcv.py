"""The ffcv backend: FFCV's decoder and the fused kernel, for every source of encoded images.

The kernel decodes JPEGs and turns them as EXIF says. Other formats and JPEGs that libjpeg-turbo warns about are
decoded by Pillow first. With a GPU the kernel stops after resampling and flip; the crops are copied to the GPU, which
does color, blur and normalization.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.backends.device_color import finish_on_gpu
from pipeline.batch import DecodeFailure, Request
from pipeline.crops import Crops
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.images import MAX_PIXELS, BadImage, decode, is_decodable
from pipeline.dataset.ppm import from_ppm
from pipeline.draw import Draw, uncolored

AHEAD = 2  # batches in work: one in the kernel, one in preparation


class FfcvBackend:
    """Executes draws with `threads` threads on the CPU; with a `device_id`, color and blur run on that GPU.

    Images of a native format have a kernel of their own (`pipeline.kernel.channels`).

    Crops are channels-last tensors (N, C, size, size) of `dtype`: float32 (default on the CPU), float16 (default on a
    GPU), bfloat16, or uint8 on the CPU, which has neither color nor blur. Their memory is reused after their last
    reference is gone.
    """

    def __init__(
        self,
        crops: Crops,
        batch_size: int,
        threads: int,
        device_id: int | None = None,
        dtype: torch.dtype | None = None,
        nice: int = 0,
        pixels: PixelFormat = COLOR,
    ):
        from pipeline.kernel.channels.kernel import ChannelKernel
        from pipeline.kernel.kernel import Kernel

        self.crops, self.batch_size = crops, batch_size
        self.device_id = device_id
        self.dtype = dtype or (torch.float32 if device_id is None else torch.float16)
        self.pixels = pixels
        name: Any = str(self.dtype).removeprefix("torch.")
        self.kernel: Any
        if pixels.native and device_id is None:
            self.kernel = ChannelKernel(crops, pixels, threads, name, nice)
        elif pixels.native:
            plain = replace(crops, mean=(0.0,) * pixels.channels, std=(1.0,) * pixels.channels)
            self.kernel = ChannelKernel(plain, pixels, threads, "float32", nice)
        else:
            self.kernel = Kernel(crops, threads, name if device_id is None else "uint8", nice=nice)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="pillow")
        self.ahead = ThreadPoolExecutor(AHEAD, thread_name_prefix="batch")
        self.free: dict[tuple[int, ...], list[np.ndarray]] = {}  # unused buffers by shape

    def stream(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[torch.Tensor]]]:
        """Crops of each request, in order. Raises DecodeFailure if an image cannot be decoded.

        While the kernel makes one batch, the next is prepared and the one after that is read, so that the kernel's
        threads never wait.
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
            request.encoded = []  # frees 20 MB of a batch of 256 before its crops are used
            yield request, self._finish(request.draw, buffers)

    def decodes(self, encoded: np.ndarray, most: int) -> bool:
        """Whether Pillow decodes these bytes: it decodes all that the kernel cannot."""
        return is_decodable(encoded.tobytes(), most)

    def close(self) -> None:
        """End all threads."""
        for pool in (self.ahead, self.pool):
            pool.shutdown(cancel_futures=True)
        self.kernel.close()

    # ------------------------------------------------------------------ one batch
    def _fill(self, request: Request, buffers: list[np.ndarray]) -> None:
        """Write the request's crops to `buffers`. Raises BadImage if an image cannot be decoded."""
        if request.pixels.native != self.pixels.native:
            raise ValueError(f"images of {request.pixels} for a backend of other images")
        if self.pixels.native:
            drawn = request.draw if self.device_id is None else uncolored(request.draw)
            self.kernel.run(list(self.pool.map(request.native, range(len(request.rows)))), drawn, buffers)
            return
        images, height, width = list(request.encoded), request.height, request.width
        jpeg = np.array([image[:2].tobytes() == b"\xff\xd8" for image in images], bool)
        self._decode(images, np.flatnonzero(~jpeg), height, width)
        status = self.kernel.run(images, jpeg, height, width, request.draw, buffers)
        rest = np.flatnonzero(status)
        if len(rest):
            self._decode(images, rest, height, width)
            part = self.kernel.buffers(len(rest))
            pixels = [images[index] for index in rest]
            no_jpeg = np.zeros(len(rest), bool)
            self.kernel.run(pixels, no_jpeg, height[rest], width[rest], _take(request.draw, rest), part)
            for whole, crops in zip(buffers, part, strict=True):
                whole[:, rest] = crops

    def _decode(self, images: list[np.ndarray], which: Sequence[int] | np.ndarray, height: Any, width: Any) -> None:
        """Replace the encoded images `which` by their pixels (H, W, 3)."""

        def pixels(index: int) -> np.ndarray:
            rgb = from_ppm(images[index])
            if rgb is None:
                rgb = decode(images[index].tobytes(), max(MAX_PIXELS, int(height[index]) * int(width[index])))
            if rgb.shape[:2] != (height[index], width[index]):  # the file changed since the table was made
                rgb = np.asarray(Image.fromarray(rgb).resize((int(width[index]), int(height[index]))))
            return rgb

        for index, rgb in zip(which, self.pool.map(pixels, which), strict=True):
            images[index] = rgb

    # ------------------------------------------------------------------ memory
    def _buffers(self, batch: int) -> list[np.ndarray]:
        """Outputs for the kernel, (views, batch, size, size, C) per resolution; unused buffers are taken first."""
        buffers = []
        for new in self.kernel.buffers(batch):  # allocates nothing until it is written
            if self.free.get(new.shape):
                buffers.append(self.free[new.shape].pop())
            elif self.device_id is None:
                buffers.append(new)
            else:
                pinned = torch.empty(new.nbytes, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
                buffers.append(pinned.numpy().view(new.dtype).reshape(new.shape))
        return buffers

    def _finish(self, draw: Draw, buffers: list[np.ndarray]) -> list[torch.Tensor]:
        """The crops as tensors; with a GPU, after color, blur and normalization there."""
        tensors = []
        for buffer in buffers:
            view = buffer.view()  # lives as long as the tensors made of it; then the buffer is unused again
            weakref.finalize(view, self.free.setdefault(buffer.shape, []).append, buffer)
            bits = torch.from_numpy(view)
            tensors.append(bits.view(torch.bfloat16) if buffer.dtype == np.uint16 else bits)
        if self.device_id is not None:
            device = torch.device("cuda", self.device_id)
            tensors = finish_on_gpu(tensors, draw, self.crops, device, self.dtype, self.batch_size, self.pixels)
        return [tensor.flatten(0, 1).permute(0, 3, 1, 2) for tensor in tensors]


def _take(draw: Draw, rows: np.ndarray) -> Draw:
    """The draw of some of its rows."""
    return Draw(**{field.name: getattr(draw, field.name)[rows] for field in fields(Draw)})
