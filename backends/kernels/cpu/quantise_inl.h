// Activations as int8 digits. Included by ops_inl.h.
//
// One scale for 32 columns alone costs the embedded model 0.7 % perplexity and 3.6 % of its greedy choices (one a row: 5
// and 11 %): a few channels are tens of times larger than the rest and take the scale of their chunk with them. Those
// chunks, about a tenth, get a second digit, which divides their rounding error by 254: 0.2 and 1.5 % are left
// (`make bench-fidelity`), and a KL divergence of 0.0007 instead of 0.003. With a bar of 10 instead of 6 it is 0.0013,
// and a prefill 4 % faster.
#pragma once

namespace {

constexpr float kFineAbove = 6;  // a chunk stands out when its highest value is this many times the row's rms

struct Digit {
    F16 low, high;  // the 32 codes, as floats
    inline void write(int8_t* to) const { store_int8(to, low), store_int8(to + 16, high); }
    inline float sum() const { return sum_lanes(add(low, high)); }
};

inline Digit rounded(F16 a, F16 b, float inverse) {
    return {nearest(mul(a, all(inverse))), nearest(mul(b, all(inverse)))};
}

// What one digit leaves of 32 values, as a second digit 254 times finer.
inline Digit remainder(F16 a, F16 b, const Digit& digit, float scale) {
    const F16 back = all(-scale);
    return rounded(fma(digit.low, back, a), fma(digit.high, back, b), 254 / scale);
}

// Codes of one chunk and the sum of the values they stand for. `poison` is 0, or NaN for a row that is not finite.
inline float quantise_chunk(const float* x, const Activations& to, int64_t at, float bar, float poison) {
    const F16 a = load(x), b = load(x + 16);
    const float highest = max_lanes(max(magnitude(a), magnitude(b)));
    const bool is_some = highest > 1e-30f, is_fine = is_some && highest > bar;
    const float scale = highest * (1 / 127.0f) + poison;
    const Digit digit = rounded(a, b, is_some ? 127 / highest : 0);
    digit.write(to.codes + 32 * at);
    to.scales[at] = scale, to.fine_scales[at] = 0, to.is_fine[at] = is_fine;
    if (!is_fine) return scale * digit.sum();
    const Digit fine = remainder(a, b, digit, scale);
    fine.write(to.fine + 32 * at);
    to.fine_scales[at] = scale * (1 / 254.0f);
    return scale * digit.sum() + to.fine_scales[at] * fine.sum();
}

inline float sum_of_squares(const float* x, int columns) {
    F16 squares = zero();
    for (int k = 0; k < columns; k += 16) squares = fma(load(x + k), load(x + k), squares);
    return sum_lanes(squares);
}

inline void add_pairs(const float* sums, int count, int64_t stride, float* to) {
    for (int i = 0; i < count; i += 2, to += stride)
        *to = sums[i * stride] + (i + 1 < count ? sums[(i + 1) * stride] : 0);
}

// Writes row `m` of `to`; x is zero beyond its last column. A row with NaN or infinity becomes NaN as a whole.
void quantise(const float* x, const Activations& to, int m) {
    const float squares = sum_of_squares(x, to.columns);
    const float bar = kFineAbove * __builtin_sqrtf(squares / float(to.columns));
    const int n32 = to.chunks(), n64 = (n32 + 1) / 2;
    float *sums = to.sums + m, *sums64 = sums + n32 * to.stride, *sums128 = sums64 + n64 * to.stride;
    for (int c = 0; c < n32; c++)
        sums[c * to.stride] = quantise_chunk(x + 32 * c, to, c * to.stride + m, bar, 0 * squares);
    add_pairs(sums, n32, to.stride, sums64);
    add_pairs(sums64, n64, to.stride, sums128);
}

// quantise(x * rsqrt(mean(x * x) + eps) * weight); x is zero beyond `count`
void rms_quantise(const float* x, const float* weight, int count, float eps, float* scratch, const Activations& to,
                  int row) {
    const F16 scale = all(1 / __builtin_sqrtf(sum_of_squares(x, to.columns) / float(count) + eps));
    for (int k = 0; k < to.columns; k += 16) store(scratch + k, mul(mul(load(x + k), scale), load(weight + k)));
    quantise(scratch, to, row);
}

}  // namespace
