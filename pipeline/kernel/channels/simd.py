"""Vectors of 16 float32 for numba: loads from samples of any type, stores and arithmetic, a transpose of 8 x 8.

LLVM maps them to what the CPU has: two AVX2 registers, one of AVX-512, four of SSE or NEON.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from pipeline.kernel.simd import pointer_to

FLOATS = 16  # in a Floats value
TILE = 8  # rows and columns of a transpose
_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_F32, FLOATS)
_ROW = ir.VectorType(_F32, TILE)


class _FloatsType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Floats")


FLOATS_TYPE = _FloatsType()


@register_model(_FloatsType)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type) -> None:
        super().__init__(manager, fe_type, _VECTOR)


def _splat(builder, scalar, count):
    vector, lanes = ir.VectorType(scalar.type, count), ir.VectorType(_I32, count)
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(lanes, [0] * count))


@intrinsic
def load_floats(typing, array, index):
    """The 16 values of a uint8, uint16 or float32 array from `index` on, unaligned."""
    sample = {types.uint8: _I8, types.uint16: _I16, types.float32: _F32}[array.dtype]
    vector = ir.VectorType(sample, FLOATS)

    def build(context, builder, signature, args):
        array, index = args
        pointer = context.make_array(signature.args[0])(context, builder, array).data
        pointer = builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())
        values = builder.load(pointer, align=sample.width // 8 if sample is not _F32 else 4)
        return values if sample is _F32 else builder.uitofp(values, _VECTOR)

    return FLOATS_TYPE(array, types.intp), build


@intrinsic
def store_floats(typing, array, index, value):
    """Write 16 values to a float32 array from `index` on, unaligned."""

    def build(context, builder, signature, args):
        array, index, value = args
        builder.store(value, pointer_to(context, builder, signature.args[0], array, index, _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, FLOATS_TYPE), build


@intrinsic
def splat_float(typing, value):
    """A vector whose 16 lanes all hold the same float32."""

    def build(context, builder, signature, args):
        return _splat(builder, args[0], FLOATS)

    return FLOATS_TYPE(types.float32), build


@intrinsic
def multiply_add(typing, a, b, c):
    """a * b + c, by one instruction where the CPU has it."""

    def build(context, builder, signature, args):
        a, b, c = args
        return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

    return FLOATS_TYPE(FLOATS_TYPE, FLOATS_TYPE, FLOATS_TYPE), build


@intrinsic
def within(typing, value, low, high):
    """Each lane limited to the range from low to high."""

    def build(context, builder, signature, args):
        value, low, high = args
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return FLOATS_TYPE(FLOATS_TYPE, FLOATS_TYPE, FLOATS_TYPE), build


def _rows(builder, pointer, stride):
    """8 rows of 8 floats, `stride` floats apart, transposed."""
    rows = []
    for row in range(TILE):
        place = builder.gep(pointer, [builder.mul(stride, ir.Constant(_I64, row))])
        rows.append(builder.load(builder.bitcast(place, _ROW.as_pointer()), align=4))
    mask = ir.VectorType(_I32, TILE)
    low = ir.Constant(mask, [half + TILE * side for half in range(TILE // 2) for side in range(2)])
    high = ir.Constant(mask, [half + TILE * side for half in range(TILE // 2, TILE) for side in range(2)])
    for _ in range(3):  # each round moves one bit of the row number into the column number
        pairs = [(rows[i], rows[i + TILE // 2]) for i in range(TILE // 2)]
        rows = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in (low, high)]
    return rows


@intrinsic
def transpose8(typing, target, at, target_stride, source, start, source_stride):
    """target[at + c * target_stride + r] = source[start + r * source_stride + c] for r, c < 8: float32 arrays."""

    def build(context, builder, signature, args):
        target, at, target_stride, source, start, source_stride = args
        pointer = pointer_to(context, builder, signature.args[3], source, start, _F32)
        for column, row in enumerate(_rows(builder, pointer, source_stride)):
            index = builder.add(at, builder.mul(target_stride, ir.Constant(_I64, column)))
            builder.store(row, pointer_to(context, builder, signature.args[0], target, index, _ROW), align=4)
        return context.get_dummy_value()

    integers = [types.intp] * 2
    return types.void(target, *integers, source, *integers), build


def _half(builder, value):
    """Rounded to float16."""
    return builder.fptrunc(value, ir.VectorType(ir.HalfType(), TILE))


def _bfloat(builder, value):
    """The bits of finite values rounded (ties to even) to bfloat16."""
    wide = ir.VectorType(_I32, TILE)

    def everywhere(number):
        return ir.Constant(wide, [number] * TILE)

    bits = builder.bitcast(value, wide)
    last = builder.and_(builder.lshr(bits, everywhere(16)), everywhere(1))
    rounded = builder.add(builder.add(bits, everywhere(0x7FFF)), last)
    return builder.trunc(builder.lshr(rounded, everywhere(16)), ir.VectorType(_I16, TILE))


def _normalized_store(size, rounded):
    """An intrinsic that transposes 8 rows of 8 floats and stores (value - mean[q + c]) * gain[q + c] at
    address + r * pitch, c < 8: each value in `size` bytes."""

    @intrinsic
    def store_normalized(typing, address, pitch, source, start, source_stride, mean, gain, q):
        def build(context, builder, signature, args):
            address, pitch, source, start, source_stride, mean, gain, q = args
            pointer = pointer_to(context, builder, signature.args[2], source, start, _F32)
            mean = builder.load(pointer_to(context, builder, signature.args[5], mean, q, _ROW), align=4)
            gain = builder.load(pointer_to(context, builder, signature.args[6], gain, q, _ROW), align=4)
            for row, values in enumerate(_rows(builder, pointer, source_stride)):
                values = builder.fmul(builder.fsub(values, mean), gain)
                values = rounded(builder, values) if rounded else values
                place = builder.add(address, builder.mul(pitch, ir.Constant(_I64, row)))
                builder.store(values, builder.inttoptr(place, values.type.as_pointer()), align=size)
            return context.get_dummy_value()

        integers = [types.int64] * 2
        return types.void(*integers, source, types.intp, types.intp, mean, gain, types.intp), build

    return store_normalized


store_float32, store_float16, store_bfloat16 = (
    _normalized_store(4, None),
    _normalized_store(2, _half),
    _normalized_store(2, _bfloat),
)
