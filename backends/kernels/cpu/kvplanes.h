// One layer of a chunk of 256 tokens between the cache's blocks and a run of bytes, as the lossless codec has it:
//
//   halves   high bytes of K, of V, low bytes of K, of V; each [16 runs][kv_heads][as in the block]
//   codes    [16 runs][kv_heads][K, V], as they are
//
// High bytes are signs and exponents, which compress; low bytes are noise. K and V have codes of their own.
#pragma once
#include <cstring>

#include "ops.h"

namespace tidegate {

// Whether a chunk's runs all lie in the cache, and its positions in the context.
inline bool is_within(const TgModel& m, const TgChunk& chunk) {
    if (chunk.first < 0 || chunk.first > m.context - kChunkTokens || chunk.sinks < 0) return false;
    for (int run = 0; run < kChunkTokens / 16; run++)
        if (chunk.blocks[run] < 0 || chunk.blocks[run] >= m.kv_blocks || chunk.runs[run] < 0 ||
            chunk.runs[run] >= m.block_tokens / 16)
            return false;
    return true;
}

// Sixteen tokens of a head: K's plane, then V's.
inline uint8_t* run_of(const TgModel& m, const TgChunk& chunk, int layer, int run, int head) {
    const int64_t plane = plane_bytes(m.kv_bits, (m.head_dim + 15) / 16 * 16);
    const int64_t at = (int64_t(layer) * m.kv_blocks + chunk.blocks[run]) * m.kv_heads + head;
    return m.kv + (at * (m.block_tokens / 16) + chunk.runs[run]) * 2 * plane;
}

class KvPlanes {
   public:
    KvPlanes(const TgModel& model, const TgChunk& chunk, int layer) : model_(model), chunk_(chunk), layer_(layer) {
        plane_ = plane_bytes(model.kv_bits, (model.head_dim + 15) / 16 * 16);
    }

    int64_t bytes() const { return kChunkTokens / 16 * model_.kv_heads * 2 * plane_; }

    void read(uint8_t* out) const {
        each([&](int64_t at, const uint8_t* run) {
            if (model_.kv_bits != 16) memcpy(out + at, run, size_t(2 * plane_));
            else for (int part = 0; part < 2; part++) apart(run + part * plane_, high(out, at, part), low(out, at, part));
        });
    }

    void write(const uint8_t* from) const {
        each([&](int64_t at, uint8_t* run) {
            if (model_.kv_bits != 16) memcpy(run, from + at, size_t(2 * plane_));
            else for (int part = 0; part < 2; part++) together(high(from, at, part), low(from, at, part), run + part * plane_);
        });
    }

   private:
    template <class Use>
    void each(Use use) const {
        int64_t at = 0;
        for (int run = 0; run < kChunkTokens / 16; run++)
            for (int head = 0; head < model_.kv_heads; head++, at += 2 * plane_)
                use(at, run_of(model_, chunk_, layer_, run, head));
    }

    // Where the plane's high and low bytes lie; `at` counts bytes of both planes, of which each has a quarter in each.
    template <class Byte>
    Byte* high(Byte* bytes_of_layer, int64_t at, int part) const { return bytes_of_layer + part * bytes() / 4 + at / 4; }
    template <class Byte>
    Byte* low(Byte* bytes_of_layer, int64_t at, int part) const { return high(bytes_of_layer, at, part) + bytes() / 2; }

    void apart(const uint8_t* halves, uint8_t* __restrict high, uint8_t* __restrict low) const {
        for (int64_t i = 0; i < plane_ / 2; i++) low[i] = halves[2 * i], high[i] = halves[2 * i + 1];
    }

    void together(const uint8_t* high, const uint8_t* low, uint8_t* __restrict halves) const {
        for (int64_t i = 0; i < plane_ / 2; i++) halves[2 * i] = low[i], halves[2 * i + 1] = high[i];
    }

    const TgModel& model_;
    const TgChunk& chunk_;
    int layer_;
    int64_t plane_;
};

}  // namespace tidegate
