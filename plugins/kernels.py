"""The kernels of the `dec` operators, in the Triton language.

Each kernel computes the body of its operator in `dec_export.onnx_export.bodies`. Programs do not wait for one another,
the order of every sum is fixed, and every size is a constant of the kernel, except for the batch, which is an axis of
the grid. Storage is float32 or float16; accumulators and statistics are float32.
"""

import triton
import triton.language as tl


@triton.jit
def _shifted_softplus(x, OFFSET: tl.constexpr):
    """Compute log(1 + exp(x)) - OFFSET without overflow."""
    return tl.maximum(x, 0.0) + tl.log(tl.exp(-OFFSET) + tl.exp(-tl.abs(x) - OFFSET))


@triton.jit
def _moments(means, variances, shares, axis: tl.constexpr):
    """Combine means and variances of bands to those of the map; a masked band must have a share of zero."""
    mean = tl.sum(means * shares, axis)
    deviation = means - tl.expand_dims(mean, axis)
    return mean, tl.sum((variances + deviation * deviation) * shares, axis)


@triton.jit
def _positive_steps(phi, blur_rows, blur_steps, plane, R: tl.constexpr, R_PAD: tl.constexpr, SHARPNESS: tl.constexpr):
    """Compute softmax(SHARPNESS (phi + its blur)) of a plane of phi: (R_PAD, R_PAD), zero beyond (R, R - 1)."""
    r = tl.arange(0, R_PAD)[:, None]
    s = tl.arange(0, R_PAD)[None, :]
    point = tl.load(phi + (plane * R + r) * (R - 1) + s, mask=(r < R) & (s < R - 1), other=0.0)
    steps = tl.load(blur_steps + r * (R - 1) + s, mask=(r < R - 1) & (s < R - 1), other=0.0)
    rows = tl.load(blur_rows + r * R + s, mask=(r < R) & (s < R), other=0.0)
    along = tl.dot(point, steps, input_precision="ieee")
    smooth = point + (along + tl.dot(rows, point + along, input_precision="ieee"))
    sharp = tl.where(s < R - 1, SHARPNESS * smooth, float("-inf"))
    powers = tl.exp(sharp - tl.max(sharp, 1)[:, None])
    return tl.where(r < R, tl.div_rn(powers, tl.sum(powers, 1)[:, None]), 0.0)


@triton.jit
def _pixel(coordinate, SIZE: tl.constexpr):
    """Return the left neighbour's index and the right one's weight for a coordinate of GridSample inside the image.

    Without aligned corners, coordinate g is pixel (g + 1) n / 2 - 1 / 2.
    """
    place = tl.minimum(tl.maximum(((coordinate + 1.0) * SIZE - 1.0) * 0.5, 0.0), SIZE - 1.0)
    left = tl.floor(place)
    # Minimum and maximum turn NaN into a number, but the weight must stay NaN.
    return left.to(tl.int32), tl.where(coordinate == coordinate, place - left, coordinate)


@triton.jit
def warp(
    image,
    phi,
    blur_rows,
    blur_steps,
    spread_x,
    accumulate_x,
    accumulate_y,
    spread_y,
    warped,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDING: tl.constexpr,
    R: tl.constexpr,
    R_PAD: tl.constexpr,
    SHARPNESS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Warp and pad images. The grid has tiles of columns, tiles of rows, and images."""
    OUT_H: tl.constexpr = HEIGHT + 2 * PADDING
    OUT_W: tl.constexpr = WIDTH + 2 * PADDING
    b = tl.program_id(2).to(tl.int64)
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    r = tl.arange(0, R_PAD)

    # The matrices are interleaved: x coordinates come from even columns, y coordinates from odd ones.
    pair = accumulate_x + (r[:, None] * OUT_W + j[None, :]) * 2
    across = tl.load(pair, mask=(r < R - 1)[:, None] & (j < OUT_W), other=0.0)
    steps_x = _positive_steps(phi, blur_rows, blur_steps, b * 2, R, R_PAD, SHARPNESS)
    columns = tl.dot(steps_x, across, input_precision="ieee")
    spread = tl.load(spread_x + i[:, None] * R + r[None, :], mask=(i < OUT_H)[:, None] & (r < R), other=0.0)
    x = tl.dot(spread, columns, input_precision="ieee")

    down = tl.load(accumulate_y + i[:, None] * (R - 1) + r[None, :], mask=(i < OUT_H)[:, None] & (r < R - 1), other=0.0)
    steps_y = tl.trans(_positive_steps(phi, blur_rows, blur_steps, b * 2 + 1, R, R_PAD, SHARPNESS))
    rows = tl.dot(down, steps_y, input_precision="ieee")
    pair = spread_y + (r[:, None] * OUT_W + j[None, :]) * 2 + 1
    spread = tl.load(pair, mask=(r < R)[:, None] & (j < OUT_W), other=0.0)
    y = tl.dot(rows, spread, input_precision="ieee")

    left, right_weight = _pixel(x, WIDTH)
    top, bottom_weight = _pixel(y, HEIGHT)
    right = tl.minimum(left + 1, WIDTH - 1)
    bottom = tl.minimum(top + 1, HEIGHT - 1)
    inside = (i < OUT_H)[:, None] & (j < OUT_W)[None, :]
    for channel in tl.static_range(CHANNELS):
        plane = image + (b * CHANNELS + channel) * HEIGHT * WIDTH
        above = tl.load(plane + top * WIDTH + left) * (1.0 - right_weight)
        above += tl.load(plane + top * WIDTH + right) * right_weight
        below = tl.load(plane + bottom * WIDTH + left) * (1.0 - right_weight)
        below += tl.load(plane + bottom * WIDTH + right) * right_weight
        value = above * (1.0 - bottom_weight) + below * bottom_weight
        place = warped + ((b * CHANNELS + channel) * OUT_H + i[:, None]) * OUT_W + j[None, :]
        tl.store(place, value.to(warped.dtype.element_ty), mask=inside)


@triton.jit
def convolve(
    padded,
    weight,
    peak,
    moments,
    CHANNELS_IN: tl.constexpr,
    CHANNELS_OUT: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
    POOL: tl.constexpr,
    SLOTS: tl.constexpr,
    WINDOWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Convolve and pool. The grid has bands of POOL rows, tiles of output channels, and images.

    A product's rows are the pixels of WINDOWS windows. SLOTS is the smallest power of two of at least POOL * POOL.
    """
    IN_W: tl.constexpr = WIDTH + KERNEL - 1
    IN_HW: tl.constexpr = (HEIGHT + KERNEL - 1) * IN_W
    TAPS: tl.constexpr = KERNEL * KERNEL
    DEPTH: tl.constexpr = CHANNELS_IN * TAPS
    BANDS: tl.constexpr = (HEIGHT + POOL - 1) // POOL
    ALL_WINDOWS: tl.constexpr = (WIDTH + POOL - 1) // POOL
    OUT_W: tl.constexpr = WIDTH // POOL
    OUT_H: tl.constexpr = HEIGHT // POOL
    band = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    b = tl.program_id(2).to(tl.int64)
    m = tl.arange(0, WINDOWS * SLOTS)
    slot = m % SLOTS
    row = band * POOL + slot // POOL
    column_of_first = (m // SLOTS) * POOL + slot % POOL
    is_row = (slot < POOL * POOL) & (row < HEIGHT)
    source = padded + b * CHANNELS_IN * IN_HW
    count = 0.0
    mean = tl.zeros((BLOCK_N,), tl.float32)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, ALL_WINDOWS, WINDOWS):
        column = column_of_first + first * POOL
        live = is_row & (column < WIDTH)
        pixel = row * IN_W + column
        map_ = tl.zeros((WINDOWS * SLOTS, BLOCK_N), tl.float32)
        for start in range(0, DEPTH, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            tap = k % TAPS
            reach = (k // TAPS) * IN_HW + (tap // KERNEL) * IN_W + tap % KERNEL
            places = pixel[:, None] + reach[None, :]
            pixels = tl.load(source + places, mask=live[:, None] & (k < DEPTH)[None, :], other=0.0)
            taps = weight + n[None, :] * DEPTH + k[:, None]
            weights = tl.load(taps, mask=(n < CHANNELS_OUT)[None, :] & (k < DEPTH)[:, None], other=0.0)
            map_ = tl.dot(pixels, weights, map_, input_precision=PRECISION)

        # The moments of this part about its own mean are merged into those of the earlier parts.
        part = tl.sum(live.to(tl.float32), 0)
        part_mean = tl.sum(tl.where(live[:, None], map_, 0.0), 0) / part
        deviation = tl.where(live[:, None], map_ - part_mean[None, :], 0.0)
        total = count + part
        step = part_mean - mean
        squares += tl.sum(deviation * deviation, 0) + step * step * (count * part / total)
        mean += step * (part / total)
        count = total

        window = first + tl.arange(0, WINDOWS)
        slots = tl.reshape(tl.where(live[:, None], map_, float("-inf")), (WINDOWS, SLOTS, BLOCK_N))
        place = ((b * CHANNELS_OUT + n[None, :]) * OUT_H + band) * OUT_W + window[:, None]
        # The windows of a last, partial band are not in the output.
        windows = tl.where(band < OUT_H, OUT_W, 0)
        kept = (window < windows)[:, None] & (n < CHANNELS_OUT)[None, :]
        tl.store(peak + place, tl.max(slots, 1).to(peak.dtype.element_ty), mask=kept)

    place = moments + ((b * CHANNELS_OUT + n) * BANDS + band) * 2
    tl.store(place, mean, mask=n < CHANNELS_OUT)
    tl.store(place + 1, squares / count, mask=n < CHANNELS_OUT)


@triton.jit
def activate(
    peak,
    moments,
    shares,
    scale,
    shift,
    padded,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BANDS: tl.constexpr,
    BANDS_PAD: tl.constexpr,
    PADDING: tl.constexpr,
    OFFSET: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Apply the norm and softplus to pooled maps, and pad them. The grid has channels and images."""
    OUT_W: tl.constexpr = WIDTH + 2 * PADDING
    SIZE: tl.constexpr = (HEIGHT + 2 * PADDING) * OUT_W
    channel = tl.program_id(0)
    plane = tl.program_id(1).to(tl.int64) * CHANNELS + channel
    band = tl.arange(0, BANDS_PAD)
    share = tl.load(shares + band, mask=band < BANDS, other=0.0)
    of_band = moments + (plane * BANDS + band) * 2
    means = tl.load(of_band, mask=band < BANDS, other=0.0)
    mean, variance = _moments(means, tl.load(of_band + 1, mask=band < BANDS, other=0.0), share, 0)
    factor = tl.div_rn(tl.load(scale + channel), tl.sqrt_rn(variance + EPS))
    rest = tl.load(shift + channel) - mean * factor
    for start in range(0, SIZE, BLOCK):
        e = start + tl.arange(0, BLOCK)
        i = tl.abs(e // OUT_W - PADDING)
        j = tl.abs(e % OUT_W - PADDING)
        i = (HEIGHT - 1) - tl.abs(HEIGHT - 1 - i)
        j = (WIDTH - 1) - tl.abs(WIDTH - 1 - j)
        top = tl.load(peak + plane * HEIGHT * WIDTH + i * WIDTH + j, mask=e < SIZE, other=0.0).to(tl.float32)
        value = _shifted_softplus(top * factor + rest, OFFSET)
        tl.store(padded + plane * SIZE + e, value.to(padded.dtype.element_ty), mask=e < SIZE)


@triton.jit
def _pooled_scores(scores, is_map, pool_rows, pool_columns, scale, shift, SIZE: tl.constexpr, EPS: tl.constexpr):
    """Compute sigmoid(norm(scores)) and pool it: (h, w) -> (R, R). The norm is affine, so it commutes with pooling."""
    level = tl.sum(tl.sum(tl.where(is_map, scores, 0.0), 1), 0) / SIZE
    centred = tl.where(is_map, scores - level, 0.0)
    variance = tl.sum(tl.sum(centred * centred, 1), 0) / SIZE
    rows = tl.dot(pool_rows, centred, input_precision="ieee")
    pooled = tl.dot(rows, pool_columns, input_precision="ieee")
    logits = pooled * tl.div_rn(scale, tl.sqrt_rn(variance + EPS)) + shift
    return tl.div_rn(tl.full(logits.shape, 1.0, tl.float32), 1.0 + tl.exp(-logits))


@triton.jit
def score(
    peak,
    moments,
    shares,
    scale,
    shift,
    weight,
    head_scale,
    head_shift,
    pool_rows,
    pool_columns,
    phi,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BANDS: tl.constexpr,
    R: tl.constexpr,
    H_PAD: tl.constexpr,
    W_PAD: tl.constexpr,
    BANDS_PAD: tl.constexpr,
    R_PAD: tl.constexpr,
    OFFSET: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute phi from the scores of pooled maps. The grid has images."""
    b = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, H_PAD)
    j = tl.arange(0, W_PAD)
    band = tl.arange(0, BANDS_PAD)[None, :]
    is_map = (i < HEIGHT)[:, None] & (j < WIDTH)[None, :]
    share = tl.load(shares + band, mask=band < BANDS, other=0.0)

    scores_x = tl.zeros((H_PAD, W_PAD), tl.float32)
    scores_y = tl.zeros((H_PAD, W_PAD), tl.float32)
    for first in range(0, CHANNELS, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        is_channel = c < CHANNELS
        known = is_channel[:, None] & (band < BANDS)
        of_band = moments + ((b * CHANNELS + c[:, None]) * BANDS + band) * 2
        means = tl.load(of_band, mask=known, other=0.0)
        mean, variance = _moments(means, tl.load(of_band + 1, mask=known, other=0.0), share, 1)
        factor = tl.div_rn(tl.load(scale + c, mask=is_channel, other=0.0), tl.sqrt_rn(variance + EPS))
        rest = tl.load(shift + c, mask=is_channel, other=0.0) - mean * factor
        place = (b * CHANNELS + c)[:, None, None] * HEIGHT * WIDTH + i[None, :, None] * WIDTH + j[None, None, :]
        top = tl.load(peak + place, mask=is_channel[:, None, None] & is_map[None, :, :], other=0.0).to(tl.float32)
        value = _shifted_softplus(top * factor[:, None, None] + rest[:, None, None], OFFSET)
        weight_x = tl.load(weight + c, mask=is_channel, other=0.0)
        weight_y = tl.load(weight + CHANNELS + c, mask=is_channel, other=0.0)
        scores_x += tl.sum(value * weight_x[:, None, None], 0)
        scores_y += tl.sum(value * weight_y[:, None, None], 0)

    r = tl.arange(0, R_PAD)
    rows = tl.load(pool_rows + r[:, None] * HEIGHT + i[None, :], mask=(r < R)[:, None] & (i < HEIGHT), other=0.0)
    columns = tl.load(pool_columns + j[:, None] * R + r[None, :], mask=(j < WIDTH)[:, None] & (r < R), other=0.0)
    SIZE: tl.constexpr = HEIGHT * WIDTH
    x = _pooled_scores(scores_x, is_map, rows, columns, tl.load(head_scale), tl.load(head_shift), SIZE, EPS)
    y = _pooled_scores(scores_y, is_map, rows, columns, tl.load(head_scale + 1), tl.load(head_shift + 1), SIZE, EPS)

    # phi_x drops the last column; phi_y drops the first row and is transposed.
    down = r[:, None]
    across = r[None, :]
    plane = phi + b * 2 * R * (R - 1)
    tl.store(plane + down * (R - 1) + across, x, mask=(down < R) & (across < R - 1))
    plane += R * (R - 1)
    tl.store(plane + across * (R - 1) + down - 1, y, mask=(down > 0) & (down < R) & (across < R))


@triton.jit
def _at(vector, index: tl.constexpr, SIZE: tl.constexpr):
    """Return one entry of a vector."""
    return tl.sum(tl.where(tl.arange(0, SIZE) == index, vector, 0.0), 0)


@triton.jit
def mix(
    iterates,
    images,
    iterate,
    image,
    mixed,
    new_iterates,
    new_images,
    MEMORY: tl.constexpr,
    MEMORY_PAD: tl.constexpr,
    UNUSED: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    REGULARISATION: tl.constexpr,
    DAMPING: tl.constexpr,
):
    """Mix iterates by modified Gram-Schmidt on [G'; sqrt(lambda) I], with columns as rows. The grid has images."""
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, MEMORY_PAD)
    d = tl.arange(0, SIZE_PAD)
    known = (k < MEMORY)[:, None] & (d < SIZE)[None, :]
    is_newest = (k == MEMORY - 1)[:, None]
    old = (b * MEMORY + k[:, None] + 1) * SIZE + d[None, :]
    newest = b * SIZE + tl.broadcast_to(d[None, :], (MEMORY_PAD, SIZE_PAD))
    remembered = known & (k < MEMORY - 1)[:, None]
    z = tl.load(iterates + old, mask=remembered, other=0.0)
    z += tl.load(iterate + newest, mask=known & is_newest, other=0.0)
    f = tl.load(images + old, mask=remembered, other=0.0) + tl.load(image + newest, mask=known & is_newest, other=0.0)
    place = (b * MEMORY + k[:, None]) * SIZE + d[None, :]
    tl.store(new_iterates + place, z, mask=known)
    tl.store(new_images + place, f, mask=known)
    used = (k >= UNUSED) & (k < MEMORY)
    tall = tl.where(used[:, None], f - z, 0.0)
    root = tl.sqrt_rn(tl.full((MEMORY_PAD,), REGULARISATION, tl.float32))
    unit = tl.where(k[:, None] == k[None, :], root[:, None], 0.0)
    right = tl.where(used, 1.0, 0.0)
    factor = tl.zeros((MEMORY_PAD, MEMORY_PAD), tl.float32)
    for p in tl.static_range(MEMORY):
        is_row = (k == p)[:, None]
        column = tl.sum(tl.where(is_row, tall, 0.0), 0)
        column_unit = tl.sum(tl.where(is_row, unit, 0.0), 0)
        norm = tl.sqrt_rn(tl.sum(column * column, 0) + tl.sum(column_unit * column_unit, 0))
        column = tl.div_rn(column, norm)
        column_unit = tl.div_rn(column_unit, norm)
        along = tl.sum(tall * column[None, :], 1) + tl.sum(unit * column_unit[None, :], 1)
        along = tl.where(k > p, along, 0.0)
        tall -= along[:, None] * column[None, :]
        unit -= along[:, None] * column_unit[None, :]
        factor = tl.where(is_row, tl.where(k == p, norm, along)[None, :], factor)
        # Entry p of R^-T right is final, and its part is subtracted from the later entries.
        entry = tl.div_rn(_at(right, p, MEMORY_PAD), norm)
        right = tl.where(k == p, entry, right - along * entry)

    weights = right
    for q in tl.static_range(MEMORY - 1, -1, -1):
        column = tl.sum(tl.where((k == q)[None, :], factor, 0.0), 1)
        entry = tl.div_rn(_at(weights, q, MEMORY_PAD), _at(column, q, MEMORY_PAD))
        weights = tl.where(k == q, entry, weights - tl.where(k < q, column, 0.0) * entry)
    weights = tl.where(k < MEMORY, weights, 0.0)
    weights = tl.div_rn(weights, tl.sum(weights, 0))
    point = DAMPING * tl.sum(weights[:, None] * f, 0)
    if DAMPING != 1.0:
        point += (1.0 - DAMPING) * tl.sum(weights[:, None] * z, 0)
    tl.store(mixed + b * SIZE + d, point, mask=d < SIZE)


@triton.jit
def keep(iterate, image, best, smallest, new_best, new_smallest, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr):
    """Keep the image with the smallest residual so far. The grid has images."""
    b = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, SIZE_PAD)
    place = b * SIZE + d
    f = tl.load(image + place, mask=d < SIZE, other=0.0)
    difference = f - tl.load(iterate + place, mask=d < SIZE, other=0.0)
    residual = tl.sum(difference * difference, 0)
    before = tl.load(smallest + b)
    better = residual < before
    tl.store(new_best + place, tl.where(better, f, tl.load(best + place, mask=d < SIZE, other=0.0)), mask=d < SIZE)
    tl.store(new_smallest + b, tl.where(better, residual, before))
