// The table of kernels one instruction set offers; `ops_inl.h` writes them once over sixteen-lane vectors.
#pragma once
#include <cstdint>

#include "panel.h"

namespace tidegate {

// Rows of int8 activations: x[m][k] = scales[m] * codes[m][k]. `sums` holds the sums of the codes over 32, then over
// 64, then over 128 columns, so that a minimum or an offset costs one multiply-add a group. Rows are `stride` bytes
// apart, never a power of two: twelve rows 4096 apart would share the eight ways of one cache set.
struct Activations {
    int8_t* codes;
    float* scales;
    float* sums;
    int rows, columns;  // columns: a multiple of 32
    int64_t stride, sums_stride;

    static int64_t stride_of(int columns) { return columns + 64; }
    static int64_t sums_of(int columns) { return columns / 32 + (columns + 63) / 64 + (columns + 127) / 128; }
    const float* sums_for(int group) const {
        const int n32 = columns / 32;
        return sums + (group == 32 ? 0 : group == 64 ? n32 : n32 + (columns + 63) / 64);
    }
};

// Queries of one KV head against the cached tokens of one sequence.
struct Attention {
    const float* q;         // [rows][head_width], rotated and scaled
    const int32_t* limits;  // tokens each row may see
    int rows, head_width;   // head_width: head_dim rounded up to 16
    const uint16_t* kv;     // this layer, this head
    int64_t block_stride;   // in halves
    const int32_t* blocks;
    int block_tokens;
};

// Softmax state of a row: out = sum / weight once all chunks are merged.
struct Softmax {
    float highest, weight;
};

constexpr Softmax kNothing{-3.4e38f, 0};
constexpr int kAttendTokens = 256;  // tokens of a chunk: the unit whose order of summation never changes
constexpr int kAttendRows = 48;     // most rows of one attend call

struct Ops {
    const char* name;
    void (*quantise)(const float* x, const Activations& to, int row);
    void (*rms_quantise)(const float* x, const float* weight, int count, float eps, float* scratch, const Activations& to,
                         int row);
    void (*matmul)(const TgLinear& w, const Activations& x, int first, int last, float* out, int64_t stride, bool add);
    void (*swiglu)(const TgLinear& gate, const TgLinear& up, const Activations& x, int first, int last, float* out,
                   int64_t stride);
    void (*rotate)(const float* x, const float* norm, float eps, const float* cosines, const float* sines, int head_dim,
                   float scale, float* out);
    void (*store_kv)(const float* k, const float* v, int head_dim, int head_width, uint16_t* subblock, int slot);
    void (*attend)(const Attention& a, int chunk, Softmax* state, float* sums, float* scratch);
    void (*merge)(const Softmax& part, const float* part_sums, Softmax& into, float* sums, int head_width);
    int (*argmax)(const float* x, int count);
};

extern const Ops ops_portable;
#if defined(__x86_64__)
extern const Ops ops_avx2;
extern const Ops ops_avx512;
#endif

}  // namespace tidegate
