"""Vector instructions for numba: loads, stores and arithmetic on 32 bytes, a byte transpose, bytes to floats.

Each function here is a few LLVM instructions that compiled code inlines. LLVM maps the vectors to what the CPU has (one
AVX2 register, two of SSE or NEON). A `Lanes` value is 32 bytes seen as 16 lanes of 16 bits: a lane holds two
neighboring bytes, the even one low, the odd one high (little-endian, as are all CPUs that torch runs on).
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

BYTES = 32  # in a Lanes value
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_VECTOR = ir.VectorType(_I16, BYTES // 2)
_WIDE = ir.VectorType(_I32, BYTES // 2)


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


LANES = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type) -> None:
        super().__init__(manager, fe_type, _VECTOR)


def pointer_to(context, builder, kind, array, index, pointee):
    """Address of array[index] as a pointer to `pointee`."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), pointee.as_pointer())


def _all(vector, value):
    return ir.Constant(vector, [value] * vector.count)


def _splat(builder, scalar, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count))


# ---------------------------------------------------------------------------------------------- vectors
@intrinsic
def load(typing, array, index):
    """The 32 bytes of a uint8 array from `index` on, unaligned."""

    def build(context, builder, signature, args):
        array, index = args
        return builder.load(pointer_to(context, builder, signature.args[0], array, index, _VECTOR), align=1)

    return LANES(array, types.intp), build


@intrinsic
def store(typing, array, index, value):
    """Write 32 bytes to a uint8 array from `index` on, unaligned."""

    def build(context, builder, signature, args):
        array, index, value = args
        builder.store(value, pointer_to(context, builder, signature.args[0], array, index, _VECTOR), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), build


@intrinsic
def store_half(typing, array, index, value):
    """Write the first 16 bytes of `value` to a uint8 array from `index` on, unaligned."""

    def build(context, builder, signature, args):
        array, index, value = args
        half = ir.VectorType(_I16, BYTES // 4)
        lower = builder.shuffle_vector(
            value, value, ir.Constant(ir.VectorType(_I32, half.count), list(range(half.count)))
        )
        builder.store(lower, pointer_to(context, builder, signature.args[0], array, index, half), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), build


@intrinsic
def splat(typing, value):
    """A vector whose 16 lanes all hold the same uint16."""

    def build(context, builder, signature, args):
        return _splat(builder, args[0], _VECTOR)

    return LANES(types.uint16), build


@intrinsic
def add(typing, a, b):
    """Sum of lanes, modulo 2^16."""

    def build(context, builder, signature, args):
        return builder.add(*args)

    return LANES(LANES, LANES), build


@intrinsic
def scaled(typing, a, weight):
    """a * weight / 2^16 of unsigned lanes, rounded down."""

    def build(context, builder, signature, args):
        a, weight = (builder.zext(arg, _WIDE) for arg in args)
        return builder.trunc(builder.lshr(builder.mul(a, weight), _all(_WIDE, 16)), _VECTOR)

    return LANES(LANES, LANES), build


@intrinsic
def even_bytes(typing, a):
    """The even bytes times 256."""

    def build(context, builder, signature, args):
        return builder.shl(args[0], _all(_VECTOR, 8))

    return LANES(LANES), build


@intrinsic
def packed(typing, even, odd, half):
    """Bytes from two sums: of even bytes times 256, and of whole lanes; `half` is added before rounding down.

    A whole lane is its odd byte times 256 plus its even byte, so the sum of the even bytes is subtracted from `odd`
    here: one subtraction instead of a mask at every tap.
    """

    def build(context, builder, signature, args):
        even, odd, half = args
        kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR])
        plus = cgutils.get_or_insert_function(builder.module, kind, "llvm.uadd.sat.v16i16")
        minus = cgutils.get_or_insert_function(builder.module, kind, "llvm.usub.sat.v16i16")
        odd = builder.call(minus, [odd, builder.lshr(even, _all(_VECTOR, 8))])
        even, odd = builder.call(plus, [even, half]), builder.call(plus, [odd, half])
        return builder.or_(builder.lshr(even, _all(_VECTOR, 8)), builder.and_(odd, _all(_VECTOR, 0xFF00)))

    return LANES(LANES, LANES, LANES), build


@intrinsic
def even_128(typing, a):
    """The even bytes times 128, which fits into signed lanes."""

    def build(context, builder, signature, args):
        return builder.lshr(builder.shl(args[0], _all(_VECTOR, 8)), _all(_VECTOR, 1))

    return LANES(LANES), build


@intrinsic
def odd_128(typing, a):
    """The odd bytes times 128, which fits into signed lanes."""

    def build(context, builder, signature, args):
        return builder.and_(builder.lshr(args[0], _all(_VECTOR, 1)), _all(_VECTOR, 0x7F80))

    return LANES(LANES), build


@intrinsic
def scaled_signed(typing, a, weight):
    """a * weight / 2^16 of signed lanes, rounded down."""

    def build(context, builder, signature, args):
        a, weight = (builder.sext(arg, _WIDE) for arg in args)
        return builder.trunc(builder.ashr(builder.mul(a, weight), _all(_WIDE, 16)), _VECTOR)

    return LANES(LANES, LANES), build


@intrinsic
def add_signed(typing, a, b):
    """Sum of signed lanes, saturating."""

    def build(context, builder, signature, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.sadd.sat.v16i16"), args)

    return LANES(LANES, LANES), build


def _packed_fractions(bits: int):
    """An intrinsic that packs signed lanes with `bits` bits after the point to bytes."""

    @intrinsic
    def pack(typing, even, odd):
        def build(context, builder, signature, args):
            kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR])
            lowest = cgutils.get_or_insert_function(builder.module, kind, "llvm.smin.v16i16")
            highest = cgutils.get_or_insert_function(builder.module, kind, "llvm.smax.v16i16")
            even, odd = (
                builder.call(highest, [builder.call(lowest, [arg, _all(_VECTOR, (256 << bits) - 1)]), _all(_VECTOR, 0)])
                for arg in args
            )
            odd = builder.and_(builder.shl(odd, _all(_VECTOR, 8 - bits)), _all(_VECTOR, 0xFF00))
            return builder.or_(builder.lshr(even, _all(_VECTOR, bits)), odd)

        return LANES(LANES, LANES), build

    return pack


# Bytes from signed lanes of the even and odd bytes in eighths or 64ths of a level, clipped and rounded down
packed_eighths, packed_64ths = _packed_fractions(3), _packed_fractions(6)


@intrinsic
def odd_alone(typing, even, odd):
    """The sum of odd bytes times 256, of two sums as `packed` takes them."""

    def build(context, builder, signature, args):
        even, odd = args
        kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR])
        minus = cgutils.get_or_insert_function(builder.module, kind, "llvm.usub.sat.v16i16")
        return builder.call(minus, [odd, builder.lshr(even, _all(_VECTOR, 8))])

    return LANES(LANES, LANES), build


@intrinsic
def quarter(typing, a, half):
    """(a + half) / 4 of unsigned lanes, the sum saturating: levels times 256 become signed 64ths."""

    def build(context, builder, signature, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR])
        plus = cgutils.get_or_insert_function(builder.module, kind, "llvm.uadd.sat.v16i16")
        return builder.lshr(builder.call(plus, args), _all(_VECTOR, 2))

    return LANES(LANES, LANES), build


@intrinsic
def centered(typing, a, half):
    """a + half - 128 * 256: unsigned lanes to signed ones around a chroma of 128."""

    def build(context, builder, signature, args):
        return builder.xor(builder.add(*args), _all(_VECTOR, 0x8000))

    return LANES(LANES, LANES), build


@intrinsic
def byte_pair_sums(typing, a):
    """The even byte plus the odd byte of each lane."""

    def build(context, builder, signature, args):
        (a,) = args
        return builder.add(builder.and_(a, _all(_VECTOR, 0xFF)), builder.lshr(a, _all(_VECTOR, 8)))

    return LANES(LANES), build


@intrinsic
def lane_sum(typing, a):
    """Sum of all 16 lanes."""

    def build(context, builder, signature, args):
        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I32, [_WIDE]), "llvm.vector.reduce.add.v16i32"
        )
        return builder.zext(builder.call(reduce, [builder.zext(args[0], _WIDE)]), _I64)

    return types.int64(LANES), build


@intrinsic
def transpose16(typing, target, at, target_stride, source, start, source_stride):
    """target[at + c * target_stride + r] = source[start + r * source_stride + c] for r, c < 16: uint8 arrays."""

    def build(context, builder, signature, args):
        target, at, target_stride, source, start, source_stride = args
        vector = ir.VectorType(_I8, 16)
        rows = []
        for row in range(16):
            index = builder.add(start, builder.mul(source_stride, ir.Constant(_I64, row)))
            rows.append(builder.load(pointer_to(context, builder, signature.args[3], source, index, vector), align=1))
        mask = ir.VectorType(_I32, 16)
        low = ir.Constant(mask, [half + 16 * side for half in range(8) for side in range(2)])
        high = ir.Constant(mask, [half + 16 * side for half in range(8, 16) for side in range(2)])
        for _ in range(4):  # each round moves one bit of the row number into the column number
            pairs = [(rows[i], rows[i + 8]) for i in range(8)]
            rows = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in (low, high)]
        for column in range(16):
            index = builder.add(at, builder.mul(target_stride, ir.Constant(_I64, column)))
            builder.store(rows[column], pointer_to(context, builder, signature.args[0], target, index, vector), align=1)
        return context.get_dummy_value()

    integers = [types.intp] * 2
    return types.void(target, *integers, source, *integers), build


# ---------------------------------------------------------------------------------------------- bytes to values
def _half_bits(builder, value):
    """Bits of float32 values rounded to float16."""
    vector = ir.VectorType(ir.HalfType(), value.type.count)
    return builder.bitcast(builder.fptrunc(value, vector), ir.VectorType(_I16, vector.count))


def _bfloat_bits(builder, value):
    """Bits of finite float32 values rounded (ties to even) to bfloat16."""
    wide = ir.VectorType(_I32, value.type.count)
    bits = builder.bitcast(value, wide)
    last = builder.and_(builder.lshr(bits, _all(wide, 16)), _all(wide, 1))
    rounded = builder.add(builder.add(bits, _all(wide, 0x7FFF)), last)
    return builder.trunc(builder.lshr(rounded, _all(wide, 16)), ir.VectorType(_I16, wide.count))


def _value_store(count: int, size: int, round_values):
    """An intrinsic that stores `count` bytes as values of `size` bytes: byte * gain + bias, then rounded."""

    @intrinsic
    def store_values(typing, address, array, index, gain, bias, column):
        def build(context, builder, signature, args):
            address, array, index, gain, bias, column = args
            numbers = ir.VectorType(_I8, count)
            floats = ir.VectorType(ir.FloatType(), count)
            number = builder.load(pointer_to(context, builder, signature.args[1], array, index, numbers), align=1)
            gain = builder.load(pointer_to(context, builder, signature.args[3], gain, column, floats), align=4)
            bias = builder.load(pointer_to(context, builder, signature.args[4], bias, column, floats), align=4)
            product = builder.fmul(builder.uitofp(number, floats), gain, flags=("contract",))
            value = builder.fadd(product, bias, flags=("contract",))
            if round_values:
                value = round_values(builder, value)
            pointer = builder.inttoptr(address, value.type.as_pointer())
            if count == 1:
                builder.store(value, pointer, align=1)
            else:  # bypasses the cache: the crops are read much later, and overwritten lines need not be loaded first
                stored = builder.store(value, pointer, align=count * size)
                stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))
            return context.get_dummy_value()

        return types.void(types.int64, array, types.int64, gain, bias, types.int64), build

    return store_values


# `stream_*`: 16 values at an address that is a multiple of their total size; `store_*`: one value at any address
stream_floats, store_float = _value_store(16, 4, None), _value_store(1, 4, None)
stream_halves, store_half_float = _value_store(16, 2, _half_bits), _value_store(1, 2, _half_bits)
stream_bfloats, store_bfloat = _value_store(16, 2, _bfloat_bits), _value_store(1, 2, _bfloat_bits)
