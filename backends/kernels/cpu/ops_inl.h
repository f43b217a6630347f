// Every kernel, written once over the sixteen lanes of simd_*.h; included by one source file per instruction set.
//
// A row's arithmetic never depends on its company: the rows of a tile share loads, not sums, so an answer is bitwise the
// same alone, in any batch, and on any number of threads. Multiply-adds are explicit (-ffp-contract=off).
#pragma once
#include <cfloat>
#include <cstring>

#include "ops.h"

namespace {

using namespace tidegate;

// --- int8 activations -------------------------------------------------------------------------------------------------

// codes = round(x * 127 / max|x|), scale = max|x| / 127
void quantise(const float* x, const Activations& to, int row) {
    int8_t* codes = to.codes + row * to.stride;
    float* sums = to.sums + row * to.sums_stride;
    F16 most = zero();
    for (int k = 0; k < to.columns; k += 16) most = max(most, magnitude(load(x + k)));
    const float highest = max_lanes(most);
    const F16 inverse = all(highest > 0 ? 127 / highest : 0);
    to.scales[row] = highest / 127;
    const int n32 = to.columns / 32, n64 = (to.columns + 63) / 64, n128 = (to.columns + 127) / 128;
    for (int g = 0; g < n32; g++) {
        const F16 a = nearest(mul(load(x + 32 * g), inverse)), b = nearest(mul(load(x + 32 * g + 16), inverse));
        store_int8(codes + 32 * g, a);
        store_int8(codes + 32 * g + 16, b);
        sums[g] = sum_lanes(add(a, b));
    }
    for (int g = 0; g < n64; g++) sums[n32 + g] = sums[2 * g] + (2 * g + 1 < n32 ? sums[2 * g + 1] : 0);
    for (int g = 0; g < n128; g++)
        sums[n32 + n64 + g] = sums[n32 + 2 * g] + (2 * g + 1 < n64 ? sums[n32 + 2 * g + 1] : 0);
}

float rms_scale(const float* x, int padded, int count, float eps) {
    F16 squares = zero();
    for (int k = 0; k < padded; k += 16) squares = fma(load(x + k), load(x + k), squares);
    return 1 / __builtin_sqrtf(sum_lanes(squares) / float(count) + eps);
}

// quantise(x * rsqrt(mean(x * x) + eps) * weight); x is zero beyond `count`
void rms_quantise(const float* x, const float* weight, int count, float eps, float* scratch, const Activations& to,
                  int row) {
    const F16 scale = all(rms_scale(x, to.columns, count, eps));
    for (int k = 0; k < to.columns; k += 16) store(scratch + k, mul(mul(load(x + k), scale), load(weight + k)));
    quantise(scratch, to, row);
}

// --- matrix products --------------------------------------------------------------------------------------------------

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
inline void dot_pair(const uint8_t* chunk, const int8_t* const (&x)[Rows], int64_t column, Dot<Bits> (&dots)[Rows]) {
    U8 even, odd;
    unpack<Bits, Pair>(chunk, even, odd);
#pragma GCC unroll 12
    for (int m = 0; m < Rows; m++) {
        dots[m].add(even, x[m] + column + 8 * Pair);
        dots[m].add(odd, x[m] + column + 8 * Pair + 4);
        dots[m].template after_pair<Pair>();
    }
}

// out[m] = sum over groups of scale * (dot - offset * sum) + minimum * sum, times the row's scale
template <int Bits, bool Asymmetric, int Rows>
inline void tile(const uint8_t* panel, const Panels& p, const Activations& x, int group, const int (&rows)[Rows],
                 F16 (&out)[Rows]) {
    constexpr float kOffset = (Asymmetric ? 0 : 1 << (Bits - 1)) - Dot<Bits>::bias;
    const uint16_t* scales = (const uint16_t*)panel;
    const uint16_t* minimums = scales + p.groups * kLanes;
    const uint8_t* chunk = panel + p.header;
    const int8_t* codes[Rows];
    const float* sums[Rows];
    for (int m = 0; m < Rows; m++) {
        codes[m] = x.codes + rows[m] * x.stride;
        sums[m] = x.sums_for(group) + rows[m] * x.sums_stride;
        out[m] = zero();
    }
    int64_t column = 0;
    for (int g = 0; g < p.groups; g++) {
        Dot<Bits> dots[Rows];
        const int64_t end = g + 1 < p.groups ? column + group : int64_t(p.chunks) * kChunk;
        for (; column < end; column += kChunk, chunk += chunk_bytes(Bits)) {
            dot_pair<Bits, 0, Rows>(chunk, codes, column, dots);
            dot_pair<Bits, 1, Rows>(chunk, codes, column, dots);
            dot_pair<Bits, 2, Rows>(chunk, codes, column, dots);
            dot_pair<Bits, 3, Rows>(chunk, codes, column, dots);
        }
        const F16 scale = load_half(scales + g * kLanes);
        const F16 minimum = Asymmetric ? load_half(minimums + g * kLanes) : zero();
#pragma GCC unroll 12
        for (int m = 0; m < Rows; m++) {
            F16 dot = dots[m].value();
            if constexpr (kOffset != 0) dot = fma(all(sums[m][g]), all(-kOffset), dot);
            out[m] = fma(scale, dot, out[m]);
            if constexpr (Asymmetric) out[m] = fma(minimum, all(sums[m][g]), out[m]);
        }
    }
    for (int m = 0; m < Rows; m++) out[m] = mul(out[m], all(x.scales[rows[m]]));
}

// Calls use(Rows, first) for tiles as even as can be: thirteen rows are 7 + 6, not 12 + 1.
template <int Most, class Use>
inline void in_tiles(int count, Use use) {
    const int tiles = (count + Most - 1) / Most;
    for (int t = 0, first = 0; t < tiles; t++) {
        const int size = (count - first + tiles - t - 1) / (tiles - t);
        use(size, first);
        first += size;
    }
}

// Runs body<Rows> for the least compiled size >= count; surplus rows repeat the last one and are not written.
template <template <int> class Body, class... Arguments>
inline void sized(int count, Arguments&&... arguments) {
    if (count == 1) return Body<1>::run(count, arguments...);
    if (count == 2) return Body<2>::run(count, arguments...);
    if (count == 3) return Body<3>::run(count, arguments...);
    if (count == 4) return Body<4>::run(count, arguments...);
    if constexpr (kTileRows > 4) {
        if (count <= 6) return Body<6>::run(count, arguments...);
        if (count <= 8) return Body<8>::run(count, arguments...);
        if (count <= 10) return Body<10>::run(count, arguments...);
        return Body<12>::run(count, arguments...);
    }
}

template <int Rows>
inline void repeat_last(int count, int first, int (&rows)[Rows]) {
    for (int m = 0; m < Rows; m++) rows[m] = first + (m < count ? m : count - 1);
}

inline F16 with_bias(F16 v, const float* bias, int column) { return bias ? add(v, load(bias + column)) : v; }

template <int Bits, bool Asymmetric>
struct Product {
    template <int Rows>
    struct Tile {
        static void run(int count, const TgLinear& w, const Panels& p, const Activations& x, int panel, int first,
                        float* out, int64_t stride, bool accumulate) {
            int rows[Rows];
            F16 sums[Rows];
            repeat_last(count, first, rows);
            tile<Bits, Asymmetric>(w.panels + panel * p.stride, p, x, w.group, rows, sums);
            for (int m = 0; m < count; m++) {
                float* to = out + rows[m] * stride + panel * kLanes;
                const F16 value = with_bias(sums[m], w.bias, panel * kLanes);
                store(to, accumulate ? add(load(to), value) : value);
            }
        }
    };

    static void run(const TgLinear& w, const Activations& x, int first, int last, float* out, int64_t stride,
                    bool accumulate) {
        const Panels p = panels_of(w);
        for (int panel = first; panel < last; panel++)
            in_tiles<kTileRows>(x.rows, [&](int count, int row) {
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

// --- exp, SwiGLU ------------------------------------------------------------------------------------------------------

// exp(x) for x <= 0 (and to 88): 2^n * 2^f by a polynomial of degree 6 on |f| <= 1/2, within 2 ulp.
inline F16 exponential(F16 x) {
    x = min(max(x, all(-87.0f)), all(88.0f));
    const F16 n = nearest(mul(x, all(1.44269504088896341f)));
    F16 f = fma(n, all(-0.693359375f), x);
    f = fma(n, all(2.12194440e-4f), f);
    F16 y = all(1.9875691500e-4f);
    y = fma(y, f, all(1.3981999507e-3f));
    y = fma(y, f, all(8.3334519073e-3f));
    y = fma(y, f, all(4.1665795894e-2f));
    y = fma(y, f, all(1.6666665459e-1f));
    y = fma(y, f, all(5.0000001201e-1f));
    y = add(fma(mul(f, f), y, f), all(1));
    return times_power_of_two(y, n);
}

inline float exponential(float x) {
    float lanes[16];
    store(lanes, exponential(all(x)));
    return lanes[0];
}

// out = silu(gate x) * (up x)
void swiglu(const TgLinear& gate, const TgLinear& up, const Activations& x, int first, int last, float* out,
            int64_t stride) {
    constexpr int kRows = 32;
    float ups[kRows * kLanes];
    for (int panel = first; panel < last; panel++)
        for (int row = 0; row < x.rows; row += kRows) {
            Activations part = x;
            part.rows = x.rows - row < kRows ? x.rows - row : kRows;
            part.codes += row * x.stride, part.scales += row, part.sums += row * x.sums_stride;
            float* to = out + row * stride;
            matmul(gate, part, panel, panel + 1, to, stride, false);
            matmul(up, part, panel, panel + 1, ups - panel * kLanes, kLanes, false);
            for (int m = 0; m < part.rows; m++) {
                const F16 g = load(to + m * stride + panel * kLanes);
                const F16 silu = div(g, add(all(1), exponential(sub(zero(), g))));
                store(to + m * stride + panel * kLanes, mul(silu, load(ups + m * kLanes)));
            }
        }
}

// --- RoPE and the KV cache --------------------------------------------------------------------------------------------

// out = scale * rope(norm(x)), halves rotated against each other as in the HF layout; any head_dim, so scalar tails.
void rotate(const float* x, const float* norm, float eps, const float* cosines, const float* sines, int head_dim,
            float scale, float* out) {
    float squares = 0;
    if (norm)
        for (int d = 0; d < head_dim; d++) squares += x[d] * x[d];
    const float inverse = norm ? 1 / __builtin_sqrtf(squares / float(head_dim) + eps) : 1;
    const int half = head_dim / 2;
    for (int d = 0; d < half; d++) {
        const float a = norm ? x[d] * inverse * norm[d] : x[d];
        const float b = norm ? x[d + half] * inverse * norm[d + half] : x[d + half];
        out[d] = (a * cosines[d] - b * sines[d]) * scale;
        out[d + half] = (b * cosines[d] + a * sines[d]) * scale;
    }
}

// One token's K and V into its slot of a sub-block: [K: head_width x 16 tokens | V: 16 tokens x head_width]. K is stored
// across tokens so that a register of scores is sixteen tokens and needs no sum over lanes.
void store_kv(const float* k, const float* v, int head_dim, int head_width, uint16_t* subblock, int slot) {
    const F16 most = all(65504.0f), least = all(-65504.0f);
    uint16_t halves[16];
    uint16_t* values = subblock + 16 * head_width + slot * head_width;
    for (int d = 0; d < head_dim; d += 16) {
        const int count = head_dim - d < 16 ? head_dim - d : 16;
        F16 key = zero(), value = zero();
        if (count == 16) {
            key = load(k + d), value = load(v + d);
        } else {
            float rest[32] = {};
            memcpy(rest, k + d, size_t(count) * 4), memcpy(rest + 16, v + d, size_t(count) * 4);
            key = load(rest), value = load(rest + 16);
        }
        store_half(halves, max(min(key, most), least));
        store_half(values + d, max(min(value, most), least));
        for (int i = 0; i < 16; i++) subblock[(d + i) * 16 + slot] = halves[i];
    }
}

// --- attention --------------------------------------------------------------------------------------------------------

inline const uint16_t* subblock_of(const Attention& a, int token) {
    const int64_t inside = token % a.block_tokens / 16;
    return a.kv + a.blocks[token / a.block_tokens] * a.block_stride + inside * 32 * a.head_width;
}

// scores[row][token] = q[row] . k[token], for `Spans` runs of sixteen tokens at once to keep the multipliers busy
template <int Rows, int Spans>
inline void score_spans(const Attention& a, const int (&rows)[Rows], int token, float* scores) {
    const uint16_t* keys[Spans];
    F16 sums[Spans][Rows];
    for (int s = 0; s < Spans; s++) {
        keys[s] = subblock_of(a, token + 16 * s);
        for (int m = 0; m < Rows; m++) sums[s][m] = zero();
    }
    for (int d = 0; d < a.head_width; d++)
#pragma GCC unroll 4
        for (int s = 0; s < Spans; s++) {
            const F16 key = load_half(keys[s] + 16 * d);
#pragma GCC unroll 12
            for (int m = 0; m < Rows; m++) sums[s][m] = fma(all(a.q[rows[m] * a.head_width + d]), key, sums[s][m]);
        }
    for (int s = 0; s < Spans; s++)
        for (int m = 0; m < Rows; m++) store(scores + m * kAttendTokens + token % kAttendTokens + 16 * s, sums[s][m]);
}

// scores -> exp(scores - highest) in place; tokens a row may not see weigh nothing
inline Softmax soften(float* scores, int visible, int count) {
    F16 most = all(-FLT_MAX), weights = zero();
    if (visible <= 0) {
        memset(scores, 0, size_t(count) * 4);
        return kNothing;
    }
    for (int t = 0; t < count; t += 16) most = max(most, first_lanes(load(scores + t), visible - t, -FLT_MAX));
    const float highest = max_lanes(most);
    for (int t = 0; t < count; t += 16) {
        const F16 weight = first_lanes(exponential(sub(load(scores + t), all(highest))), visible - t, 0);
        store(scores + t, weight);
        weights = add(weights, weight);
    }
    return {highest, sum_lanes(weights)};
}

// sums[row] += weight[token] * v[token] in token order, for `Slices` x 16 of the head's values at once
template <int Rows, int Slices>
inline void weigh(const Attention& a, int begin, int end, const float* weights, int slice, float* sums, int count) {
    F16 totals[Slices][Rows];
    for (int s = 0; s < Slices; s++)
        for (int m = 0; m < Rows; m++) totals[s][m] = zero();
    for (int token = begin; token < end; token += 16) {
        const uint16_t* values = subblock_of(a, token) + 16 * (a.head_width + slice);
        const int some = end - token < 16 ? end - token : 16;
        for (int t = 0; t < some; t++)
#pragma GCC unroll 4
            for (int s = 0; s < Slices; s++) {
                const F16 value = load_half(values + t * a.head_width + 16 * s);
#pragma GCC unroll 12
                for (int m = 0; m < Rows; m++)
                    totals[s][m] = fma(all(weights[m * kAttendTokens + token - begin + t]), value, totals[s][m]);
            }
    }
    for (int s = 0; s < Slices; s++)
        for (int m = 0; m < count; m++) store(sums + m * a.head_width + 16 * (slice + s), totals[s][m]);
}

template <int Rows>
struct Attend {
    static constexpr int kSpans = Rows <= 3 ? 4 : Rows <= 6 ? 2 : 1;

    static void run(int count, const Attention& a, int chunk, int first, Softmax* state, float* sums, float* scores) {
        int rows[Rows];
        repeat_last(count, first, rows);
        const int begin = chunk * kAttendTokens;
        int end = begin;
        for (int m = 0; m < count; m++) end = a.limits[rows[m]] > end ? a.limits[rows[m]] : end;
        end = end < begin + kAttendTokens ? end : begin + kAttendTokens;
        int token = begin;
        for (; token + 16 * (kSpans - 1) < end; token += 16 * kSpans) score_spans<Rows, kSpans>(a, rows, token, scores);
        for (; token < end; token += 16) score_spans<Rows, 1>(a, rows, token, scores);
        const int width = (end - begin + 15) / 16 * 16;
        for (int m = 0; m < count; m++)
            state[first + m] = soften(scores + m * kAttendTokens, a.limits[rows[m]] - begin, width);
        for (int m = count; m < Rows; m++) memset(scores + m * kAttendTokens, 0, size_t(width) * 4);
        const int slices = a.head_width / 16;
        int slice = 0;
        for (; slice + kSpans <= slices; slice += kSpans)
            weigh<Rows, kSpans>(a, begin, end, scores, slice, sums + first * a.head_width, count);
        for (; slice < slices; slice++) weigh<Rows, 1>(a, begin, end, scores, slice, sums + first * a.head_width, count);
    }
};

// One chunk of tokens for every row: state = its softmax, sums = its weighted values. `scratch`: 12 x 256 floats.
void attend(const Attention& a, int chunk, Softmax* state, float* sums, float* scratch) {
    in_tiles<kTileRows>(a.rows, [&](int count, int first) { sized<Attend>(count, a, chunk, first, state, sums, scratch); });
}

// Chunks are merged one after the other, in order, whether one thread ran them or many.
void merge(const Softmax& part, const float* part_sums, Softmax& into, float* sums, int head_width) {
    if (part.weight == 0) return;
    const float highest = part.highest > into.highest ? part.highest : into.highest;
    const float keep = into.weight == 0 ? 0 : exponential(into.highest - highest);
    const float take = exponential(part.highest - highest);
    for (int d = 0; d < head_width; d += 16)
        store(sums + d, fma(load(part_sums + d), all(take), mul(load(sums + d), all(keep))));
    into = {highest, into.weight * keep + part.weight * take};
}

// --- greedy choice ----------------------------------------------------------------------------------------------------

// The first of the highest; 0 when every value is NaN.
int argmax(const float* x, int count) {
    F16 most = all(-FLT_MAX);
    int k = 0;
    for (; k + 16 <= count; k += 16) most = max(load(x + k), most);
    float highest = max_lanes(most);
    for (; k < count; k++) highest = x[k] > highest ? x[k] : highest;
    for (k = 0; k < count; k++)
        if (x[k] == highest) return k;
    return 0;
}

}  // namespace

#define TIDEGATE_OPS(isa)                                                                                              \
    const tidegate::Ops tidegate::ops_##isa = {#isa,   quantise, rms_quantise, matmul, swiglu,                         \
                                               rotate, store_kv, attend,       merge,  argmax};
