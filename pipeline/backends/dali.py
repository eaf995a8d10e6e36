"""The DALI backend: executes a draw with one pipeline definition, on the CPU or on a GPU.

    encoded bytes -> decode once -> for each view: resize of its window (reversed if flipped) -> color
    (x' = A x + B m) -> blur, solarizing, posterizing and an exchange of rows and columns, for the crops that drew
    one -> normalize to HWC

The pipeline has no random operator: windows, matrices and sigmas come with the bytes through external_source. On a GPU
nothing returns to the CPU before the crops are done. DALI is imported only when a pipeline is built, so that `--help`
and error messages do not need it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from pipeline.backends.dali_arrays import JITTER, TYPES, jitter_arrays, jittered, posterized, scaled, solarized
from pipeline.batch import DecodeFailure, Request, group_views
from pipeline.color import color_matrices
from pipeline.crops import Changes, Crops
from pipeline.dataset.channels.format import COLOR, PixelFormat
from pipeline.dataset.images import BadImage
from pipeline.draw import Draw
from pipeline.priority import computing_threads

FLOATS = {"start": 1, "end": 1, "linear": 2, "of_mean": 2, "sigma": 0, **JITTER}  # dimensions; the others are bools
PREFETCH = 2  # batches decoded ahead; the dict form of this option would copy the outputs


class DaliBackend:
    """Executes draws with `threads` worker threads, on the CPU (`device_id` None) or on a GPU, decoding included.

    Crops are channels-last tensors (N, 3, size, size) of `dtype`, by default float32 on the CPU and float16 on a GPU.
    hw_decoder_load: share of a batch's JPEGs for a GPU's decoding engine, where it has one; None is DALI's default.
    """

    def __init__(
        self,
        crops: Crops,
        batch_size: int,
        threads: int,
        device_id: int | None = None,
        dtype: torch.dtype | None = None,
        nice: int = 0,
        hw_decoder_load: float | None = None,
        pixels: PixelFormat = COLOR,
    ):
        self.crops, self.pixels = crops, pixels
        self.dtype = dtype
        # libjpeg-turbo's default for the color channels: CPU, GPU and PIL agree (gpu-check measures what it costs)
        self.decoder: dict[str, Any] = {"jpeg_fancy_upsampling": True}
        if hw_decoder_load is not None:
            self.decoder["hw_decoder_load"] = hw_decoder_load
        self.batch_size = batch_size
        self.threads, self.nice = threads, nice
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="arrays")  # they decode where DALI does not
        self.device_id = device_id

    def stream(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[torch.Tensor]]]:
        """Crops of each request, in order, `PREFETCH` requests ahead. Raises DecodeFailure if DALI cannot decode."""
        under_way: deque[Request] = deque()

        def feed(_info: Any) -> list[Any]:
            request = next(requests)  # StopIteration ends DALI's run
            under_way.append(request)
            images = request.encoded
            if self.pixels.native:
                images = list(self.pool.map(request.native, range(len(request.rows))))
            return [images, *self._arguments(request.draw)]

        pipeline = self._define(feed)
        with computing_threads(1, "dali", self.nice) as starter:  # DALI's own threads take its priority over
            starter.submit(pipeline.build).result()
        while True:
            try:
                outputs = pipeline.run()
            except StopIteration:
                return
            except BadImage as error:
                raise DecodeFailure(error.reason, list(under_way)) from None
            except RuntimeError as error:
                if not under_way:
                    raise
                reason = next((line for line in str(error).splitlines() if "decode" in line.lower()), str(error))
                raise DecodeFailure(reason.strip(), list(under_way)) from None
            views = [_to_torch(output) for output in outputs]
            yield under_way.popleft(), group_views(self.crops, views, self.dtype)

    def decodes(self, encoded: np.ndarray, most: int) -> bool:
        """Whether DALI decodes these bytes. Builds a pipeline for each call, so use it only after a failure."""
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(batch_size=1, num_threads=1, device_id=self.device_id)
        def decode_one() -> Any:
            source = fn.external_source(source=lambda: [encoded], batch=True, dtype=types.UINT8, ndim=1)
            return fn.decoders.image(source, device="cpu" if self.device_id is None else "mixed", output_type=types.RGB)

        try:
            decode_one().run()
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """End the threads that decode; nothing else is held between streams."""
        self.pool.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------ the draw as DALI arguments
    def _arguments(self, draw: Draw) -> list[np.ndarray]:
        """The draw as contiguous arrays, one per view and argument, in the order in which `_define` unpacks them."""
        window = draw.window.astype(np.float32)
        near, far = window[..., :2], window[..., :2] + window[..., 2:]
        mirror, upside, exchange = draw.oriented
        reverse = np.stack([upside, mirror], axis=-1)  # a reversed region mirrors the image
        start, end = np.where(reverse, far, near), np.where(reverse, near, far)
        arrays = {"start": start, "end": end, "exchange": exchange}
        if self.pixels.native:
            arrays |= jitter_arrays(draw, self.pixels.channels)
        else:
            arrays["linear"], arrays["of_mean"] = color_matrices(draw)
        arrays |= {"blur": draw.blur, "sigma": draw.sigma, "solarize": draw.solarize, "posterize": draw.posterize}
        return [
            np.ascontiguousarray(arrays[name][:, view])
            for view, changes in enumerate(self.crops.changes)
            for name in arguments_of(changes, self.pixels.native)
        ]

    # ------------------------------------------------------------------ the pipeline
    def _define(self, feed: Any) -> Any:
        """The pipeline, not yet built: its graph can be defined, and looked at, without a GPU."""
        from nvidia.dali import fn, pipeline_def, types

        crops, on_gpu, pixels = self.crops, self.device_id is not None, self.pixels
        names = [name for changes in crops.changes for name in arguments_of(changes, pixels.native)]
        given = types.UINT8 if not pixels.native else getattr(types, TYPES[pixels.dtype])
        white = 1 if pixels.native else 255  # of crops before they are normalized

        @pipeline_def(
            enable_conditionals=True,
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=self.device_id,
            prefetch_queue_depth=PREFETCH,
        )
        def multi_crop() -> Any:
            images, *arguments = fn.external_source(
                source=feed,
                num_outputs=1 + len(names),
                batch=True,
                batch_info=True,
                dtype=[given, *(types.FLOAT if name in FLOATS else types.BOOL for name in names)],
                ndim=[3 if pixels.native else 1, *(FLOATS.get(name, 0) for name in names)],
                layout=["HWC" if pixels.native else "", *("" for _ in names)],
            )
            if pixels.native:
                image = images.gpu() if on_gpu else images
            else:
                image = fn.decoders.image(
                    images,
                    device="mixed" if on_gpu else "cpu",
                    output_type=types.RGB,
                    adjust_orientation=True,
                    **self.decoder,
                )
            outputs = []
            for index, view in enumerate(crops.views):
                changes = crops.changes[index]
                start, end, *arguments = arguments
                x = fn.resize(
                    image,
                    size=[view.size, view.size],
                    roi_start=start,
                    roi_end=end,
                    interp_type=types.INTERP_LINEAR,
                    antialias=True,
                    dtype=types.FLOAT if pixels.native else types.UINT8,
                )
                if pixels.native:
                    x = scaled(x, pixels)
                    if changes.colors:
                        before, contrast, after, gains, *arguments = arguments
                        x = jittered(x, before, contrast, after, gains, pixels, on_gpu)
                elif changes.colors:
                    linear, of_mean, *arguments = arguments
                    x = colored(x, linear, of_mean, on_gpu)
                if changes.blurs:
                    blurred, sigma, *arguments = arguments
                    if blurred:
                        x = fn.gaussian_blur(x, sigma=sigma)
                if changes.tones:
                    solarize, posterize, *arguments = arguments
                    if solarize:
                        x = solarized(x, changes) if pixels.native else inverted(x, 255 * changes.solarize.threshold)
                    if posterize:
                        x = posterized(x, changes, pixels) if pixels.native else masked(x, changes.posterize.bits)
                if changes.turns:
                    exchange, *arguments = arguments
                    if exchange:
                        x = fn.transpose(x, perm=[1, 0, 2], transpose_layout=False)
                x = fn.crop_mirror_normalize(
                    x,
                    dtype=types.FLOAT16 if on_gpu else types.FLOAT,
                    output_layout="HWC",
                    mean=[white * m for m in crops.mean],
                    std=[white * s for s in crops.std],
                )
                outputs.append(x)
            return tuple(outputs)

        return multi_crop()


def arguments_of(changes: Changes, native: bool) -> list[str]:
    """What a view's crops take from the draw, in the order in which the pipeline takes it."""
    names = ["start", "end"]
    names += [] if not changes.colors else list(JITTER) if native else ["linear", "of_mean"]
    names += ["blur", "sigma"] if changes.blurs else []
    names += ["solarize", "posterize"] if changes.tones else []
    return names + (["exchange"] if changes.turns else [])


def inverted(x: Any, threshold: float) -> Any:
    """The node for crops `x`, uint8, with the values from `threshold` on inverted: 255 - v is v ^ 255."""
    from nvidia.dali import fn, types

    bright = fn.cast(x >= threshold, dtype=types.UINT8) * types.Constant(255, types.UINT8)
    return x ^ bright


def masked(x: Any, bits: int) -> Any:
    """The node for crops `x`, uint8, of which the highest `bits` remain."""
    from nvidia.dali import types

    return x & types.Constant(256 - 2 ** (8 - bits), types.UINT8)


def colored(x: Any, linear: Any, of_mean: Any, on_gpu: bool) -> Any:
    """The node for A x + B m of crops `x` (H, W, 3), uint8. linear, of_mean: A and B, CPU nodes of 3x3 matrices.

    The operator could add B m itself, but takes it only from the CPU. On a GPU the mean m would have to go there, once
    for each view, and the pipeline would wait eight times a batch; so the sum is an operator of its own there.
    """
    from nvidia.dali import fn, types

    offset = fn.coord_transform(fn.reductions.mean(x, axes=(0, 1), keep_dims=True), M=of_mean)  # (1, 1, 3)
    if on_gpu:
        return fn.cast(fn.coord_transform(x, M=linear) + offset, dtype=types.UINT8)
    return fn.coord_transform(x, M=linear, T=fn.reshape(offset, shape=[3]), dtype=types.UINT8)


def _to_torch(output: Any) -> torch.Tensor:
    """A DALI batch of equal HWC samples as one (B, H, W, 3) tensor, without a copy."""
    return torch.from_dlpack(output.as_tensor())
