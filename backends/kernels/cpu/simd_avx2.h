// Sixteen lanes as two AVX2 registers; integer dot products by maddubs, whose 16-bit sums are added up for as long as
// they cannot saturate: 8 quads of 4 bits (8 * 2 * 15 * 127 = 30480), 4 of 5 bits, 2 of 6 bits. Eight bits move the sign
// to the activation: |code - 128| * 127 * 2 = 32512 fits as well.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kTileRows = 4;

struct F16 {
    __m256 a, b;
};
struct U8 {
    __m256i a, b;
};

inline F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
inline F16 all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 add(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F16 sub(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F16 mul(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F16 div(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F16 fma(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F16 max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F16 min(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F16 magnitude(F16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F16 nearest(F16 x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }
inline __m256 times_power_of_two(__m256 x, __m256 n) {
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(power));
}
inline F16 times_power_of_two(F16 x, F16 n) { return {times_power_of_two(x.a, n.a), times_power_of_two(x.b, n.b)}; }
inline F16 first_lanes(F16 x, int count, float rest) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 keep_a = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), index));
    const __m256 keep_b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), index));
    const __m256 fill = _mm256_set1_ps(rest);
    return {_mm256_blendv_ps(fill, x.a, keep_a), _mm256_blendv_ps(fill, x.b, keep_b)};
}
inline F16 load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))};
}
inline void store_half(uint16_t* p, F16 v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v.a, 0));
    _mm_storeu_si128((__m128i*)p + 1, _mm256_cvtps_ph(v.b, 0));
}
inline void store_int8(int8_t* p, F16 v) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
inline F16 of_bytes(__m128i v) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))};
}
inline F16 load_int8(const uint8_t* p) { return of_bytes(_mm_loadu_si128((const __m128i*)p)); }
inline F16 load_nibbles(const uint8_t* p, int shift) {
    const __m128i moved = _mm_srl_epi16(_mm_loadu_si128((const __m128i*)p), _mm_cvtsi32_si128(shift));
    return of_bytes(_mm_and_si128(moved, _mm_set1_epi8(15)));
}
inline float sum_lanes(F16 v) {
    __m256 s = _mm256_add_ps(v.a, v.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float max_lanes(F16 v) {
    __m256 s = _mm256_max_ps(v.a, v.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

inline U8 bytes(const uint8_t* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
inline U8 low_nibbles(U8 v) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(v.a, mask), _mm256_and_si256(v.b, mask)};
}
inline U8 high_nibbles(U8 v) { return low_nibbles({_mm256_srli_epi16(v.a, 4), _mm256_srli_epi16(v.b, 4)}); }
template <int Shift>
inline __m256i with_bits(__m256i codes, __m256i plane, __m256i mask) {
    const __m256i moved = Shift >= 0 ? _mm256_srli_epi16(plane, Shift & 15) : _mm256_slli_epi16(plane, -Shift & 15);
    return _mm256_or_si256(codes, _mm256_and_si256(moved, mask));
}
template <int Shift>
inline U8 with_bits(U8 codes, U8 plane, int mask) {
    const __m256i m = _mm256_set1_epi8(char(mask));
    return {with_bits<Shift>(codes.a, plane.a, m), with_bits<Shift>(codes.b, plane.b, m)};
}

inline __m256i widen(__m256i sum, __m256i words) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

template <int Bits>
struct Dot {
    static constexpr float bias = 0;
    __m256i a = _mm256_setzero_si256(), b = a, words_a = a, words_b = a;
    inline void add(U8 w, const int8_t* x) {
        int32_t four;
        memcpy(&four, x, 4);
        const __m256i v = _mm256_set1_epi32(four);
        words_a = _mm256_add_epi16(words_a, _mm256_maddubs_epi16(w.a, v));
        words_b = _mm256_add_epi16(words_b, _mm256_maddubs_epi16(w.b, v));
    }
    template <int Pair>
    inline void after_pair() {
        if (Bits == 6 || (Bits == 5 && Pair % 2 == 1) || Pair == 3) {
            a = widen(a, words_a), b = widen(b, words_b);
            words_a = words_b = _mm256_setzero_si256();
        }
    }
    inline F16 value() const { return {_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)}; }
};

template <>
struct Dot<8> {
    static constexpr float bias = 128;
    __m256i a = _mm256_setzero_si256(), b = a;
    static inline __m256i half(__m256i sum, __m256i codes, __m256i v) {
        const __m256i w = _mm256_xor_si256(codes, _mm256_set1_epi8(char(0x80)));
        return widen(sum, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(v, w)));
    }
    inline void add(U8 w, const int8_t* x) {
        int32_t four;
        memcpy(&four, x, 4);
        const __m256i v = _mm256_set1_epi32(four);
        a = half(a, w.a, v), b = half(b, w.b, v);
    }
    template <int Pair>
    inline void after_pair() {}
    inline F16 value() const { return {_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)}; }
};

}  // namespace
