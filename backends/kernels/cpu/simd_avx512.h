// Sixteen lanes as one AVX-512 register; integer dot products by VNNI.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kTileRows = 12;

using F16 = __m512;
using U8 = __m512i;

inline F16 zero() { return _mm512_setzero_ps(); }
inline F16 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F16 v) { _mm512_storeu_ps(p, v); }
inline F16 all(float x) { return _mm512_set1_ps(x); }
inline F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
inline F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
inline F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
inline F16 div(F16 a, F16 b) { return _mm512_div_ps(a, b); }
inline F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
inline F16 max(F16 a, F16 b) { return _mm512_max_ps(a, b); }
inline F16 min(F16 a, F16 b) { return _mm512_min_ps(a, b); }
inline F16 magnitude(F16 a) { return _mm512_abs_ps(a); }
inline F16 nearest(F16 a) { return _mm512_roundscale_ps(a, 8); }
inline F16 times_power_of_two(F16 a, F16 n) { return _mm512_scalef_ps(a, n); }
// A comparison, since counts below 0 are ordinary and no shift takes them.
inline F16 first_lanes(F16 a, int count, float rest) {
    const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mask_blend_ps(_mm512_cmpgt_epi32_mask(_mm512_set1_epi32(count), index), _mm512_set1_ps(rest), a);
}
inline F16 load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void store_half(uint16_t* p, F16 v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, 0)); }
inline void store_int8(int8_t* p, F16 v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v))); }
inline F16 load_int8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
// (byte >> shift) & 15
inline F16 load_nibbles(const uint8_t* p, int shift) {
    const __m128i moved = _mm_srl_epi16(_mm_loadu_si128((const __m128i*)p), _mm_cvtsi32_si128(shift));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(moved, _mm_set1_epi8(15))));
}
inline float sum_lanes(F16 v) { return _mm512_reduce_add_ps(v); }
inline float max_lanes(F16 v) { return _mm512_reduce_max_ps(v); }

inline U8 bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline U8 low_nibbles(U8 v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline U8 high_nibbles(U8 v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
// codes | (plane >> right or << left) & mask
template <int Shift>
inline U8 with_bits(U8 codes, U8 plane, int mask) {
    const U8 moved = Shift >= 0 ? _mm512_srli_epi16(plane, Shift & 15) : _mm512_slli_epi16(plane, -Shift & 15);
    return _mm512_ternarylogic_epi32(codes, moved, _mm512_set1_epi8(char(mask)), 0xf8);
}

// Sixteen running sums of code * activation over one group.
template <int Bits>
struct Dot {
    static constexpr float bias = 0;  // the sum is over (code - bias)
    __m512i sum = _mm512_setzero_si512();
    inline void add(U8 w, const int8_t* a) {
        // The intrinsic with set1 becomes two instructions; the broadcast is free inside the product.
        asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const int32_t(*)[1]>(a)));
    }
    template <int Pair>
    inline void after_pair() {}
    inline F16 value() const { return _mm512_cvtepi32_ps(sum); }
};

}  // namespace
