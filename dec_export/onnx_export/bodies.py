"""The bodies of the `dec` operators in standard ONNX, which run where a runtime has no kernel for the operators.

They are the specification of the kernels in `plugins/`. Each body is written in ONNX's own textual syntax, in which
@name reads an attribute of the node. Sizes come from the tensors and from attributes, so one body serves every layer of
a model.
"""

from __future__ import annotations

import re

import onnx
import onnx.parser

from dec_export.formats import Format
from dec_export.onnx_export.operators import DOMAIN, ActivateV1, ConvolveV1, MixV1, Operator, ScoreV1, WarpV1

OPSET = 18

_WARP = f"""
    along = MatMul(phi, blur_steps)
    half = Add(phi, along)
    across = MatMul(blur_rows, half)
    blur = Add(along, across)
    smooth = Add(phi, blur)
    sharpness = Constant<value_float: float = {WarpV1.SHARPNESS}>()
    sharp = Mul(smooth, sharpness)
    steps = Softmax<axis = -1>(sharp)
    steps_x, steps_y = Split<axis = 1, num_outputs = 2>(steps)
    columns = MatMul(steps_x, accumulate_x)
    free_x = MatMul(spread_x, columns)
    down = Transpose<perm = [0, 1, 3, 2]>(steps_y)
    rows = MatMul(accumulate_y, down)
    free_y = MatMul(rows, spread_y)
    right = Constant<value_float: float = @limit_x>()
    left = Neg(right)
    x = Clip(free_x, left, right)
    bottom = Constant<value_float: float = @limit_y>()
    top = Neg(bottom)
    y = Clip(free_y, top, bottom)
    interleaved = Add(x, y)
    grid_shape = Constant<value_ints: ints = @grid>()
    grid = Reshape(interleaved, grid_shape)
    sampled = GridSample<mode = "bilinear", padding_mode = "zeros", align_corners = 0>(image, grid)
"""

# TensorRT's parser does not find a pooling's sizes among the node's attributes, so they are written into each body.
_CONVOLVE = """
    map = Conv(padded, weight)
    peak = MaxPool<kernel_shape = @window, strides = @window>(map)
"""

_MOMENTS = """
    mean = AveragePool<kernel_shape = @band, strides = @band, ceil_mode = @partial>(wide)
    square = Mul(wide, wide)
    mean_square = AveragePool<kernel_shape = @band, strides = @band, ceil_mode = @partial>(square)
    squared_mean = Mul(mean, mean)
    variance = Sub(mean_square, squared_mean)
    moments = Concat<axis = 3>(mean, variance)
"""

# Computes softplus(norm(peak)) - offset from the moments of bands. The total variance is the sum of the variance within
# bands and the variance between them.
_NORMALISE = """
    means, variances = Split<axis = 3, num_outputs = 2>(moments)
    rows = Constant<value_ints: ints = [2]>()
    weighted = Mul(means, shares)
    mean = ReduceSum<keepdims = 1>(weighted, rows)
    deviation = Sub(means, mean)
    between = Mul(deviation, deviation)
    spread = Add(variances, between)
    weighted_spread = Mul(spread, shares)
    free_variance = ReduceSum<keepdims = 1>(weighted_spread, rows)
    variance = Relu(free_variance)
    eps = Constant<value_float: float = @eps>()
    safe = Add(variance, eps)
    deviation_all = Sqrt(safe)
    factor = Div(scale, deviation_all)
    moved = Mul(mean, factor)
    rest = Sub(shift, moved)
    scaled = Mul(wide_peak, factor)
    normed = Add(scaled, rest)
    offset = Constant<value_float: float = @offset>()
    less = Neg(offset)
    floor = Exp(less)
    size = Abs(normed)
    below = Sub(less, size)
    tail = Exp(below)
    inside = Add(floor, tail)
    soft = Log(inside)
    positive = Relu(normed)
    activated = Add(positive, soft)
"""

_REFLECT = """
    pads = Constant<value_ints: ints = @pads>()
    reflected = Pad<mode = "reflect">(activated, pads)
"""

_SCORE = """
    raw = Conv(activated, weight)
    level = GlobalAveragePool(raw)
    centred = Sub(raw, level)
    square = Mul(centred, centred)
    head_variance = GlobalAveragePool(square)
    head_safe = Add(head_variance, eps)
    head_deviation = Sqrt(head_safe)
    head_factor = Div(head_scale, head_deviation)
    pooled_rows = MatMul(pool_rows, centred)
    pooled = MatMul(pooled_rows, pool_columns)
    head_scaled = Mul(pooled, head_factor)
    logits = Add(head_scaled, head_shift)
    scores = Sigmoid(logits)
    zero = Constant<value_ints: ints = [0]>()
    one = Constant<value_ints: ints = [1]>()
    two = Constant<value_ints: ints = [2]>()
    three = Constant<value_ints: ints = [3]>()
    last = Constant<value_ints: ints = [-1]>()
    end = Constant<value_ints: ints = [9223372036854775807]>()
    scores_x, scores_y = Split<axis = 1, num_outputs = 2>(scores)
    phi_x = Slice(scores_x, zero, last, three)
    phi_y_down = Slice(scores_y, one, end, two)
    phi_y = Transpose<perm = [0, 1, 3, 2]>(phi_y_down)
    phi = Concat<axis = 1>(phi_x, phi_y)
"""

_RESIDUAL = """
    difference = Sub(image, iterate)
    square = Mul(difference, difference)
    all = Constant<value_ints: ints = [1, 2, 3]>()
    residual = ReduceSum<keepdims = 1>(square, all)
"""

_KEEP = """
    better = Less(residual, smallest)
    new_best = Where(better, image, best)
    new_smallest = Where(better, residual, smallest)
"""


# The form of `_KEEP` inside a loop, in which a sample does not change once its residual is below the tolerance.
_KEEP_OPEN = """
    smaller = Less(residual, smallest)
    open = Not(done)
    better = And(smaller, open)
    new_best = Where(better, image, best)
    new_smallest = Where(better, residual, smallest)
    bound = Constant<value_float: float = @bound>()
    small = Less(residual, bound)
    new_done = Or(done, small)
"""


def _mix(memory: int) -> str:
    """Return the text that shifts the memory and applies the Gram-Schmidt method of `lowering.mixing` to all of it.

    A column that is not in use is zero except for its row of sqrt(lambda) I, and its right-hand side is zero. Its
    weight is therefore zero, and it does not change the other weights.
    """
    lines = """
        axis = Constant<value_ints: ints = [1]>()
        first = Constant<value_ints: ints = [1]>()
        end = Constant<value_ints: ints = [9223372036854775807]>()
        kept_iterates = Slice(iterates, first, end, axis)
        kept_images = Slice(images, first, end, axis)
        added_iterate = Unsqueeze(iterate, axis)
        added_image = Unsqueeze(image, axis)
        new_iterates = Concat<axis = 1>(kept_iterates, added_iterate)
        new_images = Concat<axis = 1>(kept_images, added_image)
        flat_shape = Constant<value_ints: ints = [0, 0, -1]>()
        z = Reshape(new_iterates, flat_shape)
        f = Reshape(new_images, flat_shape)
        differences = Sub(f, z)
        zero = Constant<value_float: float = 0.0>()
        one = Constant<value_float: float = 1.0>()
        regularisation = Constant<value_float: float = @regularisation>()
        lambda_root = Sqrt(regularisation)
        sum_axis = Constant<value_ints: ints = [2]>()
        row_shape = Constant<value_ints: ints = [1, 1, {memory}]>()
    """.replace("{memory}", str(memory)).splitlines()
    lines += [_split(memory, "differences", "g", axis=1), _split(memory, "f", "f", axis=1), _split(memory, "z", "z", 1)]
    for i in range(memory):
        lines += _column(i, memory)
    for i in range(memory):
        lines += _orthogonalise(i, memory)
    for i in reversed(range(memory)):
        lines += _substitute_back(i, memory)
    return "\n".join([*lines, *_combine(memory)])


def _split(count: int, tensor: str, prefix: str, axis: int) -> str:
    if count == 1:
        return f"{prefix}_0 = Identity({tensor})"
    names = ", ".join(f"{prefix}_{i}" for i in range(count))
    return f"{names} = Split<axis = {axis}, num_outputs = {count}>({tensor})"


def _column(i: int, memory: int) -> list[str]:
    """Return the text that computes column i of the tall matrix, (B, 1, d + m), and its right-hand side."""
    unit = ", ".join("1.0" if j == i else "0.0" for j in range(memory))
    return [
        f"index_{i} = Constant<value_int: int = {i}>()",
        f"idle_{i} = Less(index_{i}, unused)",
        f"right_{i} = Where(idle_{i}, zero, one)",
        f"used_{i} = Where(idle_{i}, zero, g_{i})",
        f"flat_unit_{i} = Constant<value_floats: floats = [{unit}]>()",
        f"row_unit_{i} = Reshape(flat_unit_{i}, row_shape)",
        f"row_{i} = Mul(row_unit_{i}, lambda_root)",
        f"nothing_{i} = ReduceSum<keepdims = 1>(used_{i}, sum_axis)",
        f"nought_{i} = Mul(nothing_{i}, zero)",
        f"tall_row_{i} = Add(row_{i}, nought_{i})",
        f"c_{i}_0 = Concat<axis = 2>(used_{i}, tall_row_{i})",
    ]


def _orthogonalise(i: int, memory: int) -> list[str]:
    """Return the text of step i of the Gram-Schmidt method.

    The step computes row i of the triangular factor R, subtracts from the later columns their part along column i, and
    computes entry i of R^-T times the right-hand side.
    """
    lines = [
        f"square_{i} = Mul(c_{i}_{i}, c_{i}_{i})",
        f"norm_square_{i} = ReduceSum<keepdims = 1>(square_{i}, sum_axis)",
        f"r_{i}_{i} = Sqrt(norm_square_{i})",
        f"u_{i} = Div(c_{i}_{i}, r_{i}_{i})",
    ]
    for j in range(i + 1, memory):
        lines += [
            f"along_{i}_{j} = Mul(u_{i}, c_{j}_{i})",
            f"r_{i}_{j} = ReduceSum<keepdims = 1>(along_{i}_{j}, sum_axis)",
            f"part_{i}_{j} = Mul(r_{i}_{j}, u_{i})",
            f"c_{j}_{i + 1} = Sub(c_{j}_{i}, part_{i}_{j})",
        ]
    known = f"right_{i}"
    for p in range(i):
        lines += [f"k_{i}_{p} = Mul(r_{p}_{i}, y_{p})", f"left_{i}_{p} = Sub({known}, k_{i}_{p})"]
        known = f"left_{i}_{p}"
    return [*lines, f"y_{i} = Div({known}, r_{i}_{i})"]


def _substitute_back(i: int, memory: int) -> list[str]:
    lines, known = [], f"y_{i}"
    for j in range(i + 1, memory):
        lines += [f"b_{i}_{j} = Mul(r_{i}_{j}, w_{j})", f"rest_{i}_{j} = Sub({known}, b_{i}_{j})"]
        known = f"rest_{i}_{j}"
    return [*lines, f"w_{i} = Div({known}, r_{i}_{i})"]


def _combine(memory: int) -> list[str]:
    """Return the text that scales the weights to sum one, and mixes the images and, with damping, the iterates."""
    weights = ", ".join(f"w_{i}" for i in range(memory))
    return [
        f"total = Sum({weights})",
        *(f"share_{i} = Div(w_{i}, total)" for i in range(memory)),
        *(f"image_{i} = Mul(share_{i}, f_{i})" for i in range(memory)),
        f"mixed_image = Sum({', '.join(f'image_{i}' for i in range(memory))})",
        *(f"iterate_{i} = Mul(share_{i}, z_{i})" for i in range(memory)),
        f"mixed_iterate = Sum({', '.join(f'iterate_{i}' for i in range(memory))})",
        "damping = Constant<value_float: float = @damping>()",
        "undamped = Sub(one, damping)",
        "of_images = Mul(damping, mixed_image)",
        "of_iterates = Mul(undamped, mixed_iterate)",
        "flat = Add(of_images, of_iterates)",
        "shape = Shape(iterate)",
        "mixed = Reshape(flat, shape)",
    ]


def function_of(operator: Operator) -> onnx.FunctionProto:
    """Return the model-local function of an operator's node.

    The function depends only on the properties that all nodes of the operator in one model share: the memory, the
    storage type, and the sizes in the operator's name. With a 16-bit storage type the convolution runs in 16 bits, and
    all else in float32.
    """
    inputs, outputs = ([spec.name for spec in specs] for specs in (operator.inputs(), operator.outputs()))
    return _function(operator.op_type, inputs, outputs, list(operator.body_attributes()), _body(operator))


def _body(operator: Operator) -> str:
    storage = operator.storage
    narrow = storage is not Format.FP32
    if isinstance(operator, WarpV1):
        return _WARP + _cast("sampled", "warped", storage) if narrow else _renamed(_WARP, "sampled", "warped")
    if isinstance(operator, ConvolveV1):
        body = _CONVOLVE + (_cast("map", "wide", Format.FP32) if narrow else "") + _MOMENTS
        body = body.replace("@window", f"[{operator.pool}, {operator.pool}]")
        body = body.replace("@band", f"[{operator.pool}, {operator.width}]")
        body = body.replace("@partial", str(int(operator.height % operator.pool > 0)))
        return body if narrow else _renamed(body, "wide", "map")
    if isinstance(operator, ActivateV1):
        body = _NORMALISE + _REFLECT
        if narrow:
            return _cast("peak", "wide_peak", Format.FP32) + body + _cast("reflected", "padded", storage)
        return _renamed(_renamed(body, "wide_peak", "peak"), "reflected", "padded")
    if isinstance(operator, ScoreV1):
        body = _NORMALISE + _SCORE
        return _cast("peak", "wide_peak", Format.FP32) + body if narrow else _renamed(body, "wide_peak", "peak")
    if isinstance(operator, MixV1):
        return "unused = Constant<value_int: int = @unused>()\n" + _mix(operator.memory)
    return _RESIDUAL + _KEEP


def _cast(name: str, result: str, to: Format) -> str:
    return f"\n    {result} = Cast<to = {to.onnx}>({name})\n"


def _renamed(body: str, name: str, new: str) -> str:
    return re.sub(rf"\b{name}\b", new, body)


def loop_functions(memory: int) -> list[onnx.FunctionProto]:
    """Return the two functions that replace MixV1 and KeepV1 inside a loop.

    MixCounted takes the number `unused` of places that are not in use as an input; a negative number means none.
    KeepOpen does not change samples that are done, (B, 1, 1, 1); its attribute `bound` is the square of the tolerance.
    """
    outputs = ["mixed", "new_iterates", "new_images"]
    attributes = ["regularisation", "damping"]
    kept = ["new_best", "new_smallest", "new_done"]
    keep_open = _RESIDUAL + _KEEP_OPEN
    return [
        _function(
            "MixCounted", ["iterates", "images", "iterate", "image", "unused"], outputs, attributes, _mix(memory)
        ),
        _function("KeepOpen", ["iterate", "image", "best", "smallest", "done"], kept, ["bound"], keep_open),
    ]


def _function(name: str, inputs: list[str], outputs: list[str], attributes: list[str], body: str) -> onnx.FunctionProto:
    head = f"<{', '.join(attributes)}>" if attributes else ""
    text = (
        f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n'
        f"{name} {head} ({', '.join(inputs)}) => ({', '.join(outputs)}) {{\n{body}}}"
    )
    function = onnx.parser.parse_function(text)
    for node in function.node:
        node.name = node.output[0]
    return function
