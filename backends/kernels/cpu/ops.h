// The table of kernels one instruction set offers; `ops_inl.h` writes them once over sixteen-lane vectors.
#pragma once
#include <cstdint>

#include "panel.h"

namespace tidegate {

// Rows of int8 activations, one scale a chunk of 32 columns; a chunk that stands out of its row has a second digit:
//   x[m][k] = scales[c][m] * codes[c][m][k % 32] + fine_scales[c][m] * fine[c][m][k % 32],   c = k / 32
// Chunk by chunk, the rows side by side: a tile of rows then lies at fixed distances from one pointer. `fine` means
// nothing where `is_fine` is 0; its scale is 0 there. `sums` are those of x over groups of 32, then of 64, then of 128
// columns, so that a minimum or an offset costs one multiply-add a group.
struct Activations {
    int8_t *codes, *fine;         // [chunk][stride][32]
    float *scales, *fine_scales;  // [chunk][stride]
    float* sums;                  // [group][stride]
    uint8_t* is_fine;             // [chunk][stride]
    int rows, columns;            // columns: a multiple of 32
    int64_t stride;               // odd, or rows of the same cache set would follow each other

    // Tiles round five, seven, nine and eleven rows up by one, which is read and dropped.
    static int64_t stride_of(int64_t rows) { return (rows + (rows > 4)) | 1; }
    static int groups_of(int columns) { return columns / 32 + (columns + 63) / 64 + (columns + 127) / 128; }
    int chunks() const { return columns / 32; }
    const float* sums_of(int group) const {
        return sums + stride * (group == 32 ? 0 : group == 64 ? chunks() : chunks() + (columns + 63) / 64);
    }
    Activations part(int first, int count) const {
        return {codes + 32 * first,  fine + 32 * first, scales + first, fine_scales + first, sums + first,
                is_fine + first, count,             columns,        stride};
    }
    float value(int m, int k) const {
        const int64_t at = k / 32 * stride + m, code = 32 * at + k % 32;
        return scales[at] * float(codes[code]) + (is_fine[at] ? fine_scales[at] * float(fine[code]) : 0);
    }
};

// The cache holds sixteen tokens of a head as two planes, K and V, in one of three formats by the bits of a value:
//   16   halves
//   8    int8 codes in groups of 32 values, a scale a token and group:  x = scale * code
//   4    codes of 0 ... 15, with a minimum beside each scale:           x = scale * code + minimum; keys are turned (see turn)
// Scales are halves, sixteen tokens beside each other, group after group. No byte belongs to two tokens, so threads write
// tokens in any order, and what is read of a token depends on that token alone.
inline int kv_format(int bits) { return bits == 16 ? 0 : bits == 8 ? 1 : 2; }
inline int kv_groups(int bits, int head_width) { return bits == 16 ? 0 : (head_width + 31) / 32; }
inline int64_t scale_bytes(int bits, int head_width) { return kv_groups(bits, head_width) * (bits == 4 ? 64 : 32); }
inline int64_t plane_bytes(int bits, int head_width) {
    const int width = bits == 4 ? 32 * kv_groups(bits, head_width) : head_width;
    return scale_bytes(bits, head_width) + 2 * width * bits;
}

// Queries of one KV head against the cached tokens of one sequence.
struct Attention {
    const float* q;         // [rows][head_width], rotated and scaled
    const int32_t* limits;  // tokens each row may see
    int rows, head_width;   // head_width: head_dim rounded up to 16
    const uint8_t* kv;      // this layer, this head
    int64_t block_stride;   // in bytes
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

constexpr int kChunkTokens = 256;  // of the KV codec

using StoreKv = void(const float* k, const float* v, int head_dim, int head_width, uint8_t* subblock, int slot);
using Attend = void(const Attention& a, int chunk, Softmax* state, float* sums, float* scratch);

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
    StoreKv* store_kv[3];  // by kv_format
    Attend* attend[3];
    void (*turn)(float* x, int head_dim, int head_width);
    void (*merge)(const Softmax& part, const float* part_sums, Softmax& into, float* sums, int head_width);
    int (*argmax)(const float* x, int count);
    void (*decode_run)(const TgTransform& t, const uint8_t* symbols, float* x);
    float (*encode_run)(const TgTransform& t, const float* x, float* coefficients, uint8_t* symbols);
    bool (*centre)(const float* mean, int channels, float* x);
    void (*read_run)(const uint8_t* run, int head_dim, int head_width, const float* cosines, const float* sines, float* k,
                     float* v);
    void (*write_run)(const float* k, const float* v, int head_dim, int head_width, const float* cosines,
                      const float* sines, uint8_t* run);
};

extern const Ops ops_portable;
#if defined(__x86_64__)
extern const Ops ops_avx2;
extern const Ops ops_avx512;
#endif

}  // namespace tidegate
