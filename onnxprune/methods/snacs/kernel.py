"""The estimator of cells.py compiled for a CPU: one pair at a time, in a core's first cache.

Needs numba, which the extra `fast` brings; without it acmi.py does the same in torch, twice to four times slower. The
constants are those of cells.py, the values agree with torch's to rounding.

Letters: N samples, R rows (pairs), S shifts.
"""

from __future__ import annotations

import numba
import numpy as np

from onnxprune.methods.snacs import cells as forms
from onnxprune.methods.snacs.cells import BINS_XY, BINS_Z, CELLS, LEVELS, REACH, SHIFTS, TAIL

ROWS = BINS_XY * BINS_Z  # numbers of an (x, z) or a (y, z) table
ZERO, ONE, TWO, TINY, BOUND = (np.float32(v) for v in (0, 1, 2, forms.TINY, forms.UPPER))
compiled = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)


@compiled
def information(x, contributions, total, out):
    """Information of R pairs -> out (R,) float32.

    x (S, N) uint16 from `x_cells`; contributions (R, N) and total (N,) float32, rows of mean zero.
    """
    rows, samples = contributions.shape
    z = np.empty(samples, np.float32)
    levels = np.empty(samples, np.int32)
    histogram = np.empty(LEVELS, np.int32)
    y_codes, z_codes = np.empty(samples, np.uint8), np.empty(samples, np.uint8)
    cells = np.empty((SHIFTS, samples), np.uint16)
    table = np.empty((SHIFTS, CELLS), np.int32)
    counts = np.empty(CELLS, np.float32)
    n_xz, n_yz, n_z = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32), np.empty(BINS_Z, np.float32)
    members = np.empty(SHIFTS, np.float32)
    for r in range(rows):
        y = contributions[r]
        for i in range(samples):
            z[i] = total[i] - y[i]
        _fours(y, BINS_XY, levels, histogram, y_codes)
        _fours(z, BINS_Z, levels, histogram, z_codes)
        for s in range(SHIFTS):
            for i in range(samples):
                y_part = np.uint16(((y_codes[i] + s) >> 2) * BINS_Z)
                cells[s, i] = x[s, i] + y_part + np.uint16((z_codes[i] + s) >> 2)
        table[:] = 0
        for i in range(samples):  # the four tables side by side: no increment waits for the one before
            for s in range(SHIFTS):
                table[s, cells[s, i]] += 1
        for s in range(SHIFTS):
            members[s] = _divergence(table[s], counts, n_xz, n_yz, n_z)
        members.sort()
        out[r] = (members[(SHIFTS - 1) // 2] + members[SHIFTS // 2]) / 2 / samples


@compiled
def _divergence(table, counts, n_xz, n_yz, n_z):
    """Sum of N q min(g(p/q), U) over all cells of one table (CELLS,) of counts."""
    for i in range(CELLS):
        counts[i] = np.float32(table[i])
    n_xz[:], n_yz[:], n_z[:] = ZERO, ZERO, ZERO
    for x in range(BINS_XY):
        for y in range(BINS_XY):
            for z in range(BINS_Z):
                n_xz[x * BINS_Z + z] += counts[(x * BINS_XY + y) * BINS_Z + z]
        for yz in range(ROWS):
            n_yz[yz] += counts[x * ROWS + yz]
        for z in range(BINS_Z):
            n_z[z] += n_xz[x * BINS_Z + z]
    for z in range(BINS_Z):
        n_z[z] = ONE / max(n_z[z], ONE)
    for x in range(BINS_XY):
        for z in range(BINS_Z):
            n_xz[x * BINS_Z + z] = n_xz[x * BINS_Z + z] * n_z[z] + TINY
    sums = n_z  # no longer needed
    sums[:] = ZERO
    for x in range(BINS_XY):
        for y in range(BINS_XY):
            for z in range(BINS_Z):
                n = counts[(x * BINS_XY + y) * BINS_Z + z]
                m = n_xz[x * BINS_Z + z] * (n_yz[y * BINS_Z + z] + TINY)
                sums[z] += min((n - m) * (n - m) / (TWO * (n + m)), BOUND * m)
    return sums.sum()


@compiled
def _fours(v, bins, levels, histogram, codes):
    """Codes (N,) of v (N,) in quarters of a cell between its 2 % and 98 % quantiles, clamped for all shifts."""
    low, high = _quantile_range(v, levels, histogram)
    scale = np.float32(SHIFTS * bins) / (high - low) if high > low else ZERO
    offset, last = low * scale, np.float32(SHIFTS * (bins - 1))
    for i in range(len(v)):
        codes[i] = np.uint8(np.int32(min(max(v[i] * scale - offset, ZERO), last)))


@compiled
def _quantile_range(v, levels, histogram):
    """cells.quantile_range for one row, compiled."""
    samples = len(v)
    squares = ZERO
    for i in range(samples):
        squares += v[i] * v[i]
    reach = np.float32(np.sqrt(squares) * REACH / np.sqrt(samples))
    if reach <= 0:
        return ZERO, ZERO
    scale, middle, last = np.float32(LEVELS / 2) / reach, np.float32(LEVELS / 2), np.float32(LEVELS - 1)
    for i in range(samples):
        levels[i] = np.int32(min(max(v[i] * scale + middle, ZERO), last))
    histogram[:] = 0
    for i in range(samples):
        histogram[levels[i]] += 1
    low = _position(histogram, TAIL * (samples - 1))
    high = _position(histogram, (1 - TAIL) * (samples - 1))
    return np.float32(reach * (low * 2 / LEVELS - 1)), np.float32(reach * (high * 2 / LEVELS - 1))


@compiled
def _position(histogram, rank):
    """Place, in levels, of the sample of a rank, the samples of a level spread over it evenly."""
    below = 0
    for level in range(LEVELS):
        inside = histogram[level]
        if below + inside > rank:
            return level + (rank - below + 0.5) / inside
        below += inside
    return float(LEVELS)
