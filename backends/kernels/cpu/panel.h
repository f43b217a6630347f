// Where each bit of a quantised matrix lies.
//
// Sixteen rows make a panel, 32 columns of a panel make a chunk, four columns of its sixteen rows (64 bytes, byte
// 4 * row + column) make a quad: one 512-bit register of bytes, so that one integer dot product instruction feeds
// sixteen outputs and nothing is ever summed across lanes. A chunk holds eight quads:
//   4 bits: four vectors; vector i has quad 2i in the low and quad 2i + 1 in the high nibbles
//   5 bits: the same, then one vector whose bit j is the fifth bit of quad j
//   6 bits: the same as 4, then two vectors; bits 2j of vector h are the upper two of quad 4h + j
//   8 bits: eight vectors
// A panel is [scales: groups x 16 fp16][minimums: the same, when asymmetric][padding to 64][chunks], panels follow each
// other without a gap: a step reads every weight once, front to back. The last group of a row may be short (576 columns
// are 4.5 groups of 128); rows and columns beyond the matrix are zero, with zero scales.
#pragma once
#include <cstdint>

#include "abi.h"

namespace tidegate {

constexpr int kLanes = 16;
constexpr int kChunk = 32;

struct Panels {
    int panels, chunks, groups, group_chunks;
    int64_t header, stride;
};

constexpr int chunk_bytes(int bits) { return bits * 64; }

inline Panels panels_of(const TgLinear& w) {
    Panels p;
    p.panels = (w.rows + kLanes - 1) / kLanes;
    p.chunks = (w.columns + kChunk - 1) / kChunk;
    p.group_chunks = w.group / kChunk;
    p.groups = (p.chunks + p.group_chunks - 1) / p.group_chunks;
    const int64_t scales = int64_t(p.groups) * kLanes * 2 * (w.asymmetric ? 2 : 1);
    p.header = (scales + 63) / 64 * 64;
    p.stride = p.header + int64_t(p.chunks) * chunk_bytes(w.bits);
    return p;
}

}  // namespace tidegate
