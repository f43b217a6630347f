// The plain C structures that cross the border between Python (cpu.py) and the library. Python mirrors them field by
// field; `tg_layout` reports their sizes so that a mismatch is refused at load instead of read as garbage.
#pragma once
#include <cstdint>

extern "C" {

// A weight matrix [rows, columns] in panels of 16 rows (see panel.h). Absent when `panels` is null.
struct TgLinear {
    const uint8_t* panels;
    int64_t bytes;
    const float* bias;  // [rows rounded up to 16] or null
    int32_t rows, columns, bits, group, asymmetric, reserved;
};

struct TgLayer {
    const float *attention_norm, *ffn_norm;  // [hidden rounded up to 32], zero padded
    const float *q_norm, *k_norm;            // [head_dim] or null
    TgLinear q, k, v, o, gate, up, down;
};

struct TgModel {
    int32_t layers, hidden, ffn, heads, kv_heads, head_dim, vocabulary, context;
    float norm_eps;
    int32_t block_tokens, kv_blocks, kv_bits;
    const float *final_norm, *cosines, *sines;  // rope tables [context, head_dim / 2]
    const TgLayer* layer;
    TgLinear embed, head;
    uint8_t* kv;  // [layers][kv_blocks][kv_heads][block_tokens / 16][K: head_dim x 16 | V: 16 x head_dim], see ops.h
    int64_t kv_bytes;
};

// One planned step; the same fields and meaning as runner.Batch.
struct TgStep {
    const int32_t *tokens, *positions, *starts, *lengths, *blocks, *sampled;
    int32_t token_count, sequence_count, table_width, sampled_count;
    float* logits;  // [sampled_count, logits_stride] or null
    int64_t logits_stride;
    int32_t* greedy;  // [sampled_count] or null: the most likely token of each sampled row
    float* queries;   // [layers][token_count][heads * head_dim] or null: as projected, before norm and rotation
};

// What the KV codec does to sixteen tokens' channels of one group of heads: with symbols s and the mean taken off x,
//   s = round(encode . x),   x = mean + scales * (decode . s)
struct TgTransform {
    const float *mean, *scales, *sums;  // [channels]; sums: of the rows of `decode`
    const float* encode;                // [channels][kept], transposed; 64 bytes behind it are readable
    const int8_t* decode;               // [kept / 4][channels][4]; the same
    int32_t channels, kept;             // kept: a multiple of 4
};

struct TgKvCodec {
    const TgTransform* transforms;  // [layers][K, V][kv_heads / group_heads]
    int32_t layers, kv_heads, head_dim, group_heads;
};

// 256 tokens of one sequence: run i (16 tokens) is runs[i] of block blocks[i].
struct TgChunk {
    const int32_t *blocks, *runs;
    int32_t first, sinks;  // the position of the first token; positions below `sinks` are kept as they are
};

enum TgStatus : int32_t {
    TG_OK = 0,
    TG_BAD_MODEL = -1,
    TG_BAD_STEP = -2,
    TG_NO_MEMORY = -3,
    TG_NO_ISA = -4,
    TG_NO_THREAD = -5,
    TG_BAD_BYTES = -6,
};
}
