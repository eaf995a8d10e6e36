"""Native memory and code for numba: arrays at an address, C functions called by address, an atomic counter."""

from __future__ import annotations

from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.kernel.simd import pointer_to

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))


@intrinsic
def _to_pointer(typing, address):
    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


@njit(forceinline=True)
def array_at(address, count, dtype):
    """1-d array of the `count` elements of `dtype` at `address`; the caller keeps their memory alive."""
    return carray(_to_pointer(address), (count,), dtype)


@intrinsic
def copy_bytes(typing, address, array, index, count):
    """Copy `count` bytes of a uint8 array, from `index` on, to `address`."""

    def build(context, builder, signature, args):
        address, array, index, count = args
        target = builder.inttoptr(address, _I8.as_pointer())
        source = pointer_to(context, builder, signature.args[1], array, index, _I8)
        cgutils.raw_memcpy(builder, target, source, count, 1)
        return context.get_dummy_value()

    return types.void(types.int64, array, types.int64, types.int64), build


@intrinsic
def call_imdecode(typing, function, source, length, height, width, target):
    """ffcv's imdecode at address `function`: JPEG bytes at `source` -> RGB at `target`; not 0 on errors and warnings.

    Called by address, because numba's disk cache takes no function that closes over a ctypes function.
    """

    def build(context, builder, signature, args):
        function, source, length, height, width, target = args
        byte = _I8.as_pointer()
        height, width = builder.trunc(height, _I32), builder.trunc(width, _I32)
        zero, one = ir.Constant(_I32, 0), ir.Constant(_I32, 1)
        # source, size, height, width, target, crop height and width, offsets, scale 1/1, no crop, no flip
        kind = ir.FunctionType(_I32, [byte, _I64, _I32, _I32, byte, *[_I32] * 8])
        pointer = builder.inttoptr(function, kind.as_pointer())
        source, target = builder.inttoptr(source, byte), builder.inttoptr(target, byte)
        arguments = [source, length, height, width, target, height, width, zero, zero, one, one, zero, zero]
        return builder.call(pointer, arguments)

    return types.int32(*[types.int64] * 6), build


@intrinsic
def take_next(typing, counter):
    """Raise counter[0] by one atomically and return its old value: threads share the rows of a batch without a lock."""

    def build(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], ir.Constant(_I64, 0), _I64)
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(counter), build


@intrinsic
def call_decompress(typing, function, handle, source, length, height, width, target):
    """libjpeg-turbo's tjDecompress2 at address `function`, with its accurate DCT. `handle`: from tjInitDecompress, one
    per thread; other arguments and the result are those of `call_imdecode`."""

    def build(context, builder, signature, args):
        function, handle, source, length, height, width, target = args
        byte = _I8.as_pointer()
        height, width = builder.trunc(height, _I32), builder.trunc(width, _I32)
        zero = ir.Constant(_I32, 0)
        # handle, source, size, target, width, pitch (as the width), height, pixel format RGB, no flags
        kind = ir.FunctionType(_I32, [byte, byte, _I64, byte, *[_I32] * 5])
        pointer = builder.inttoptr(function, kind.as_pointer())
        handle, source, target = (builder.inttoptr(address, byte) for address in (handle, source, target))
        return builder.call(pointer, [handle, source, length, target, width, zero, height, zero, zero])

    return types.int32(*[types.int64] * 7), build


@intrinsic
def call_planes(typing, function, handle, source, length, height, width, pointers):
    """libjpeg-turbo's tjDecompressToYUVPlanes at address `function`, with its accurate DCT: JPEG bytes at `source` ->
    planes at the three addresses that `pointers` points to; not 0 on errors and warnings.

    height, width: of luma; the library decodes at the largest of its scales that is not beyond. handle: as above.
    """

    def build(context, builder, signature, args):
        function, handle, source, length, height, width, pointers = args
        byte = _I8.as_pointer()
        height, width = builder.trunc(height, _I32), builder.trunc(width, _I32)
        # handle, source, size, planes, width, pitches (as the widths), height, no flags
        kind = ir.FunctionType(_I32, [byte, byte, _I64, byte, _I32, byte, _I32, _I32])
        pointer = builder.inttoptr(function, kind.as_pointer())
        handle, source, pointers = (builder.inttoptr(address, byte) for address in (handle, source, pointers))
        nothing, zero = ir.Constant(byte, None), ir.Constant(_I32, 0)
        return builder.call(pointer, [handle, source, length, pointers, width, nothing, height, zero])

    return types.int32(*[types.int64] * 7), build
