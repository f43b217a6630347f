// Products of quantised matrices (see panel.h) with int8 activations (see ops.h). Included by ops_inl.h.
#pragma once

namespace {

// The two quads of nibble vector `Pair` of a chunk.
template <int Bits, int Pair>
inline void unpack(const uint8_t* chunk, U8& even, U8& odd) {
    if constexpr (Bits == 8) {
        even = bytes(chunk + 128 * Pair), odd = bytes(chunk + 128 * Pair + 64);
        return;
    }
    const U8 nibbles = bytes(chunk + 64 * Pair);
    even = low_nibbles(nibbles), odd = high_nibbles(nibbles);
    if constexpr (Bits == 5) {
        const U8 fifth = bytes(chunk + 256);
        even = with_bits<2 * Pair - 4>(even, fifth, 0x10), odd = with_bits<2 * Pair - 3>(odd, fifth, 0x10);
    }
    if constexpr (Bits == 6) {
        const U8 upper = bytes(chunk + 256 + 64 * (Pair / 2));
        even = with_bits<4 * (Pair % 2) - 4>(even, upper, 0x30), odd = with_bits<4 * (Pair % 2) - 2>(odd, upper, 0x30);
    }
}

template <int Bits, int Pair, int Rows>
INLINE void dot_pair(const uint8_t* chunk, const int8_t* codes, Dot<Bits> (&dots)[Rows]) {
    U8 even, odd;
    unpack<Bits, Pair>(chunk, even, odd);
#pragma GCC unroll 12
    for (int m = 0; m < Rows; m++) {
        dots[m].add(even, codes + kChunk * m + 8 * Pair);
        dots[m].add(odd, codes + kChunk * m + 8 * Pair + 4);
        dots[m].template after_pair<Pair>();
    }
}

// out[m] += scale * dot(chunk, codes of one digit) * that digit's scale
template <int Bits, int Rows>
INLINE void add_chunk(const uint8_t* chunk, const int8_t* codes, const float* digit_scales, F16 scale, F16 (&out)[Rows]) {
    Dot<Bits> dots[Rows];
    dot_pair<Bits, 0, Rows>(chunk, codes, dots);
    dot_pair<Bits, 1, Rows>(chunk, codes, dots);
    dot_pair<Bits, 2, Rows>(chunk, codes, dots);
    dot_pair<Bits, 3, Rows>(chunk, codes, dots);
#pragma GCC unroll 12
    for (int m = 0; m < Rows; m++) out[m] = fma(mul(dots[m].value(), all(digit_scales[m])), scale, out[m]);
}

// The same address, but the compiler does not know: it would keep a whole unpacked chunk in registers for the second
// digit, and spill the sums instead.
INLINE const uint8_t* again(const uint8_t* chunk) {
    asm("" : "+r"(chunk));
    return chunk;
}

template <int Rows>
INLINE bool any_of(const uint8_t* flags) {
    uint64_t first = 0, rest = 0;
    memcpy(&first, flags, Rows < 8 ? Rows : 8);
    if (Rows > 8) memcpy(&rest, flags + 8, Rows > 8 ? Rows - 8 : 0);
    return (first | rest) != 0;
}

// Few rows use each weight once, so its way from memory is all that counts, and the hardware's own prefetch ends with each
// page: a step took 5.0 ms without this and 4.1 with it at batch 1, 6.3 and 5.0 at batch 4 (best of 200, builds in turn).
constexpr int kFetchedAheadRows = 4, kFetchedAheadBytes = 4096;

INLINE void fetch_ahead(const uint8_t* chunk, int bytes) {
    for (int line = 0; line < bytes; line += 64) __builtin_prefetch(chunk + kFetchedAheadBytes + line);
}

// out[m] = sum over groups of scale * dot(codes - offset, x) + minimum * sum of x. A second digit that any row of the
// tile has is added for all of them, times zero for the others.
template <int Bits, bool Asymmetric, int Rows>
INLINE void tile(const uint8_t* panel, const Panels& p, const Activations& x, int group, F16 (&out)[Rows]) {
    constexpr float kOffset = (Asymmetric ? 0 : 1 << (Bits - 1)) - Dot<Bits>::bias;
    const uint16_t* scales = (const uint16_t*)panel;
    const uint16_t* minimums = scales + p.groups * kLanes;
    const uint8_t* chunk = panel + p.header;
    const float* sums = x.sums_of(group);
    int64_t at = 0;
    for (int m = 0; m < Rows; m++) out[m] = zero();
    for (int g = 0, c = 0; g < p.groups; g++, sums += x.stride) {
        const F16 scale = load_half(scales + g * kLanes);
        const int end = c + p.group_chunks < p.chunks ? c + p.group_chunks : p.chunks;
        for (; c < end; c++, chunk += chunk_bytes(Bits), at += x.stride) {
            if constexpr (Rows <= kFetchedAheadRows) fetch_ahead(chunk, chunk_bytes(Bits));
            add_chunk<Bits>(chunk, x.codes + kChunk * at, x.scales + at, scale, out);
            if (any_of<Rows>(x.is_fine + at))
                add_chunk<Bits>(again(chunk), x.fine + kChunk * at, x.fine_scales + at, scale, out);
        }
        if constexpr (!Asymmetric && kOffset == 0) continue;
        F16 minimum = mul(scale, all(-kOffset));
        if constexpr (Asymmetric) minimum = add(load_half(minimums + g * kLanes), minimum);
#pragma GCC unroll 12
        for (int m = 0; m < Rows; m++) out[m] = fma(minimum, all(sums[m]), out[m]);
    }
}

inline F16 with_bias(F16 v, const float* bias, int column) { return bias ? add(v, load(bias + column)) : v; }

template <int Bits, bool Asymmetric>
struct Product {
    template <int Rows>
    struct Tile {
        static void run(int count, const TgLinear& w, const Panels& p, const Activations& x, int panel, int first,
                        float* out, int64_t stride, bool accumulate) {
            F16 sums[Rows];
            tile<Bits, Asymmetric>(w.panels + panel * p.stride, p, x.part(first, count), w.group, sums);
#pragma GCC unroll 12
            for (int m = 0; m < Rows; m++) {  // not `count`: an index that varies would keep the sums in memory
                if (m >= count) break;
                float* to = out + (first + m) * stride + panel * kLanes;
                const F16 value = with_bias(sums[m], w.bias, panel * kLanes);
                store(to, accumulate ? add(load(to), value) : value);
            }
        }
    };

    static void run(const TgLinear& w, const Activations& x, int first, int last, float* out, int64_t stride,
                    bool accumulate) {
        const Panels p = panels_of(w);
        in_tiles<kTileRows>(x.rows, [&](int count, int row) {
            for (int panel = first; panel < last; panel++)
                sized<Tile>(count, w, p, x, panel, row, out, stride, accumulate);
        });
    }
};

// out (+)= w x + bias, for the outputs of panels first ... last - 1
void matmul(const TgLinear& w, const Activations& x, int first, int last, float* out, int64_t stride, bool accumulate) {
    switch (w.bits * 2 + (w.asymmetric != 0)) {
        case 8: return Product<4, false>::run(w, x, first, last, out, stride, accumulate);
        case 9: return Product<4, true>::run(w, x, first, last, out, stride, accumulate);
        case 10: return Product<5, false>::run(w, x, first, last, out, stride, accumulate);
        case 11: return Product<5, true>::run(w, x, first, last, out, stride, accumulate);
        case 12: return Product<6, false>::run(w, x, first, last, out, stride, accumulate);
        case 13: return Product<6, true>::run(w, x, first, last, out, stride, accumulate);
        case 16: return Product<8, false>::run(w, x, first, last, out, stride, accumulate);
        case 17: return Product<8, true>::run(w, x, first, last, out, stride, accumulate);
    }
}

}  // namespace
